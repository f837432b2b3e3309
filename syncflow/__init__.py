"""SyncFlow: train and run models that turn text into video and sound that belong together in time."""

__version__ = "0.1.0"
