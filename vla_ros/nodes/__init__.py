"""Thin rclpy shells, one file each."""
