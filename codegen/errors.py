"""What can go wrong while a model becomes firmware.

    CodegenError
    ├── ModelError      the ONNX file can't be imported: node, operator, attribute, remedy
    ├── CalibrationError  the calibration set doesn't fit the model
    ├── PlanError       an update plan doesn't fit the model
    ├── BoardError      no such board, or its description is wrong
    ├── BudgetError     the firmware doesn't fit the board
    ├── ToolchainError  no compiler, or the compiler failed
    ├── BundleError     a bundle is damaged or of another version
    └── VersionError    weights or a model can't be a version of a bundle

Every message names the thing and says what to do about it.
"""


class CodegenError(Exception):
    """Base of everything that codegen raises for bad input."""


class ModelError(CodegenError):
    """The ONNX file can't be imported."""


class CalibrationError(CodegenError):
    """The calibration set doesn't fit the model."""


class PlanError(CodegenError):
    """An update plan doesn't fit the model."""


class BoardError(CodegenError):
    """There is no such board, or its description is wrong."""


class BudgetError(CodegenError):
    """The firmware doesn't fit the board."""


class ToolchainError(CodegenError):
    """There is no compiler, or the compiler failed."""


class BundleError(CodegenError):
    """A bundle is damaged or of another version."""


class VersionError(CodegenError):
    """Weights, or a model trained elsewhere, can't be a version of a bundle."""
