"""Models side by side: parameters, GFLOPs, latency, memory, quality."""
