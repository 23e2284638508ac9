"""What a run tells of itself: logs, warnings, validation."""
