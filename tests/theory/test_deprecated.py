"""Names that were public once still work, and say what they are called now."""

import pytest

from noisysgd import theory


@pytest.mark.parametrize(("old", "new"), [("fit_sharpness", "fit_corner"), ("SharpnessFit", "CornerFit")])
def test_a_former_name_gives_the_renamed_object_and_warns(old: str, new: str) -> None:
    with pytest.warns(DeprecationWarning, match=rf"theory\.{old} is now called theory\.{new}") as caught:
        assert getattr(theory, old) is getattr(theory, new)
    assert caught[0].filename == __file__
    assert old not in theory.__all__
    assert old not in dir(theory)


def test_the_curvature_of_noise_scales_is_their_curvature_weighted_batch_size() -> None:
    scales = theory.NoiseScales(2.0, 4.0, noise_trace=30.0, noise_curvature=40.0)
    with pytest.warns(DeprecationWarning, match=r"is now called NoiseScales\.curvature_weighted") as caught:
        assert scales.curvature == scales.curvature_weighted == 10.0
    assert caught[0].filename == __file__


def test_an_unknown_name_is_still_an_error() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'fit_nothing'"):
        theory.fit_nothing  # noqa: B018
