"""Streams: the sequential oracle, conditioning epochs, the clock, reports and traces."""
