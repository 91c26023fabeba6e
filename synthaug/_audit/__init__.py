"""The memorization audit: `audit` compares synthetic images with training images."""

from synthaug._audit._pipeline import audit
from synthaug._audit._report import AuditReport
from synthaug._audit._split import split_for_audit

__all__ = ["AuditReport", "audit", "split_for_audit"]
