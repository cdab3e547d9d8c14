"""Core AI assets (``.aimodel``) for iOS 27 and macOS 27, executed off a Mac by Apple's own runtime."""
