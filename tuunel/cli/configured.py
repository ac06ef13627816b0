"""Commands whose line may leave values open: these come from the environment and config.toml. docs/reference/settings.md."""
# ruff: noqa: PLC0415 - a command imports what it uses when it runs: start-up time is what people feel

from typing import TYPE_CHECKING, Any, ClassVar

from typer.core import TyperCommand

if TYPE_CHECKING:
    from tuunel.config import Setting


def configured(role: str) -> type[TyperCommand]:
    """A kind of command that takes what its line leaves open from the settings of `role`; `context.obj` is its RunningSettings."""
    return type("ConfiguredCommand", (_ConfiguredCommand,), {"role": role})


class _ConfiguredCommand(TyperCommand):
    role: ClassVar[str]

    def make_context(self, info_name: Any, args: list[str], parent: Any = None, **extra: Any) -> Any:
        if "--help" in args or extra.get("resilient_parsing"):  # help and completion work whatever the settings say
            return super().make_context(info_name, args, parent, **extra)
        from tuunel.config import settings_of
        from tuunel.configfile import RunningSettings, load_settings

        resolved = load_settings(settings_of(self.role))
        names = {name: self._parameter(each.setting) for name, each in resolved.items()}
        given = {names[name]: each.value for name, each in resolved.items() if each.where}
        context = super().make_context(info_name, args, parent, default_map=given, **extra)
        sources = {name: context.get_parameter_source(parameter) for name, parameter in names.items()}
        pinned = {name: context.params[names[name]] for name, source in sources.items() if source and source.name == "COMMANDLINE"}
        context.obj = RunningSettings(resolved, pinned)
        return context

    def _parameter(self, setting: "Setting") -> str:
        return next(str(each.name) for each in self.params if setting.flag in each.opts or setting.key in each.opts)
