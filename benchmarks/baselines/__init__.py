"""Memories of other papers, to compare the Kanerva Machine with."""
