"""The adapters that come with matta. Each is registered as an entry point, exactly as an outsider's
would be.
"""
