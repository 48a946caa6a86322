"""What is measured. As in the scripts, torch's threads do not wait by spinning: this runs before torch is imported."""

import experiment  # noqa: F401  (sets how threads wait)
