"""Names of media types that both sides say."""

ARROW = "application/vnd.apache.arrow.stream"
