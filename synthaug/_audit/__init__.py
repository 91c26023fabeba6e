"""The memorization audit: `audit` compares synthetic images with training images."""

from synthaug._audit.members import membership
from synthaug._audit.membership_report import MembershipReport
from synthaug._audit.report import AuditReport
from synthaug._audit.run import audit
from synthaug._audit.split import split_for_audit

__all__ = ["AuditReport", "MembershipReport", "audit", "membership", "split_for_audit"]
