"""Measurements that compare mmcoref with other ways to do the same work."""
