"""Copies of run files for other tools.

The run files stay the truth; an export can be made again at any time.
"""
