"""The built-in MuJoCo world: table-top, arm, tasks, and the privileged expert that makes demonstrations."""
