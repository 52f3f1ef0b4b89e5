import pytest

pytest.register_assert_rewrite("tests.torture.cases", "tests.torture.rig")  # which say nothing of what was wrong, else
