"""Reports: readings of a scan are turned into a written report whose structured findings are known."""

from burnish.environments.scan_report.scan_report import ScanReport

__all__ = ["ScanReport"]
