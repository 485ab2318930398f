"""Pools of workers that follow the work: how many of which there should be, and who starts and ends them."""
