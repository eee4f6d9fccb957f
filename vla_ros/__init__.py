"""Language in, safe arm motion out: a VLA policy, a supervisor and an arm controller as one ROS 2 package."""

from pkgutil import extend_path

# The generated msg, srv and action modules lie in site-packages, the code may lie in a source tree: one package.
__path__ = extend_path(__path__, __name__)

__version__ = "0.1.0"
