"""What a generator draws while it learns: a sheet of samples after each validation."""

from pathlib import Path

from lightning.pytorch import Callback, LightningModule, Trainer

from fewspect.callbacks.panels import write_png
from fewspect.callbacks.samples import overview


class Gallery(Callback):
    """Write ``<folder>/samples_epoch_0004.png`` and hand it to every logger that offers ``log_image``.

    Args:
        folder: Where to.
    """

    def __init__(self, folder: str) -> None:
        self.folder = Path(folder)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Ask a method that has a ``preview`` (first process only)."""
        preview = getattr(pl_module, "preview", None)
        if preview is None or trainer.sanity_checking or not trainer.is_global_zero:
            return
        samples = preview()
        if samples:
            page = overview(samples)
            name = f"samples_epoch_{trainer.current_epoch:04d}"
            write_png(page, self.folder / f"{name}.png")
            for logger in trainer.loggers:
                log_image = getattr(logger, "log_image", None)
                if log_image is not None:
                    log_image(key="panels/samples", images=[page], caption=[name])
