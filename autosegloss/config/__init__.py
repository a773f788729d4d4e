"""The config room: the base of the sections of a configuration, and reading YAML with line numbers.

The sections are defined beside what they configure, in the `settings.py` of each room;
`autosegloss.search.settings.StudyConfig` joins them.
"""
