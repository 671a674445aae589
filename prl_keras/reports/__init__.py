"""The HTML page of an audit (`pip install .[audit]`)."""

from prl_keras.reports.report import report_elements, report_examples

__all__ = ["report_elements", "report_examples"]
