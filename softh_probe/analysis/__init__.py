"""From results to findings: differences that are beyond noise."""
