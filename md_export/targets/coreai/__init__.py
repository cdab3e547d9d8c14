"""Core AI assets (``.aimodel``) for iOS 27 and macOS 27; Apple's runtime executes them on Linux, too."""
