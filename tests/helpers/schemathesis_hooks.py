"""What Schemathesis sends as a file: a picture, as a schema cannot say what makes one."""

import schemathesis
from hypothesis import strategies

from tests.helpers.serving import picture

schemathesis.openapi.format("binary", strategies.integers(0, 20).map(picture))
