"""Results as text: terminal tables, HTML, Markdown, JUnit XML."""
