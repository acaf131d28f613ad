"""Adapter files: PEFT's folder, the native file and loralib's file."""
