"""Studies: arms x seeds, each a job, and what they show side by side."""

from codistill.study.spec import Study, load_study
from codistill.study.trials import Trial, trials_of

__all__ = ["Study", "Trial", "load_study", "trials_of"]
