"""Writes deploy/prometheus-rules.yaml as a PrometheusRule: run it after the rules have changed."""

from pathlib import Path
from textwrap import indent

HERE = Path(__file__).parent
RULES = HERE.parent / "prometheus-rules.yaml"
MANIFEST = HERE / "base" / "prometheusrule.yaml"
_HEAD = """\
# Made from deploy/prometheus-rules.yaml by deploy/kubernetes/prometheus_rule.py: change it there.
apiVersion: monitoring.coreos.com/v1
kind: PrometheusRule
metadata:
  name: nap-stream
  labels:
    # As ruleSelector of the Prometheus at hand asks for; this is kube-prometheus-stack's.
    release: prometheus
spec:
"""


def manifest() -> str:
    """The rules with what Kubernetes wants around them; comments go with them."""
    rules = RULES.read_text(encoding="utf-8")
    return _HEAD + indent(rules[rules.index("groups:") :], "  ")


if __name__ == "__main__":
    MANIFEST.write_text(manifest(), encoding="utf-8")
