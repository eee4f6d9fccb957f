"""Arm back ends: what turns a safe command into motion of a real or simulated arm."""
