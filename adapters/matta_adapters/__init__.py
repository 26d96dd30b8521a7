"""The adapters that come with matta: entry points, exactly as an outsider's would be."""
