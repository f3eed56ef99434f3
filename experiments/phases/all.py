"""The four experiments; what the others build on, and what is asked first, comes first.

python experiments/phases/all.py [--quick] [--config FILE] [KEY=VALUE ...]
"""

import initialisation
import penalties
import steering
import teacher
from phases import options


def main() -> None:
    place = options(__doc__)
    initialisation.runs(place, initialisation.MAIN)
    teacher.runs(place, teacher.MAIN)
    steering.runs(place)
    penalties.runs(place)
    teacher.runs(place, teacher.VARIANTS)
    initialisation.runs(place, initialisation.PARTS)
    initialisation.common(place)


if __name__ == "__main__":
    main()
