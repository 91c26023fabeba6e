"""The memorization audit: `audit` compares synthetic images with training images."""

from synthaug._audit._pipeline import audit
from synthaug._audit._report import AuditReport

__all__ = ["AuditReport", "audit"]
