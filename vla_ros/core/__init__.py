"""Pure logic: no ROS, no torch, no simulator, no clock. Time is always an argument."""
