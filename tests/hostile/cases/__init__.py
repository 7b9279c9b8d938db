"""The table of hostile inputs, a module for each kind; REAL are those that the real command is asked as well."""

from case import Case

from cases import folders, given, own_files, pictures, received, registry, settings, several, surroundings, terminals

TABLE: tuple[tuple[Case, ...], ...] = (
    tuple(pictures.CASES),
    tuple(folders.CASES),
    tuple(given.CASES),
    tuple(registry.CASES),
    tuple(received.CASES),
    tuple(terminals.CASES),
    tuple(settings.CASES),
    tuple(own_files.CASES),
    tuple(surroundings.CASES),
    tuple(several.CASES),
)
CASES: list[Case] = [case for of_kind in TABLE for case in of_kind]
REAL: list[Case] = [case for of_kind in TABLE for case in [case for case in of_kind if case.real][:5]]
