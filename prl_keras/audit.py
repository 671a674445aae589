"""`python -m prl_keras.audit data.csv --label=COLUMN`: which labels of your own data are wrong?

`prl_keras.audit` is the function. This file is only run as a program; when it is imported it becomes that
function, since the import system sets the attribute of `prl_keras` to what is in `sys.modules`.
"""

import sys

if __name__ == "__main__":
    from prl_keras.label_audit.command import main

    sys.exit(main())

from prl_keras.auditing import table

sys.modules[__name__] = table.audit  # type: ignore[assignment]
