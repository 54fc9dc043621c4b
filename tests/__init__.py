"""All tests. Several workers share the cores: libraries get one thread each, as in our servers.

Libraries read this when they are loaded, so it is set before. Further threads would wait busily.
"""

import os

os.environ.update({"MKL_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"})
