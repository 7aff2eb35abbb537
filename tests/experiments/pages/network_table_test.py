"""The table of networks: counts that papers publish."""

import pytest

from experiments.pages import network_table
from jaxdiff import networks

PUBLISHED = [
  (name, setting)
  for name, settings in network_table.SETTINGS.items()
  for setting in settings
  if name in networks.NETWORKS and setting.millions
]


def test_the_smallest_dit_has_its_published_size():
  setting = network_table.SETTINGS["dit"][0]
  count, flops = network_table.measure("dit", setting)
  assert count / 1e6 == pytest.approx(setting.millions, rel=0.01)
  assert flops / 2e9 == pytest.approx(setting.gmacs, rel=0.01)
  line = network_table.row("token_mlp", network_table.SETTINGS["token_mlp"][0])
  assert line.startswith("| `token_mlp` | 32 characters of text8 | 32 | 1.0 |")


@pytest.mark.slow
@pytest.mark.parametrize(
  ("name", "setting"), PUBLISHED, ids=[f"{n} {s.label}" for n, s in PUBLISHED]
)
def test_published_networks_have_their_published_sizes(name, setting):
  count, flops = network_table.measure(name, setting)
  assert count / 1e6 == pytest.approx(setting.millions, rel=0.01)
  if setting.gmacs:
    # products with the padding of convolutions are not in XLA's count
    assert 0.94 < flops / 2e9 / setting.gmacs < 1.01
