"""The memorization audit: `audit` compares synthetic images with training images."""

from synthaug._audit.report import AuditReport
from synthaug._audit.run import audit
from synthaug._audit.split import split_for_audit

__all__ = ["AuditReport", "audit", "split_for_audit"]
