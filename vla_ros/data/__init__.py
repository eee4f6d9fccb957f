"""Episodes on disk: written, read, judged, exported. No ROS is needed to use what is here.

One episode is one rosbag2 folder: `<name>/<name>_0.mcap` and `metadata.yaml`. What a bag has no field for is in its
custom data, and `episode.py` is the only place that knows the keys.
"""
