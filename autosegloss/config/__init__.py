"""The config room: what every section of a configuration is built from, and reading YAML with lines.

The sections themselves stand beside what they configure, as `settings.py` of each room; the whole of a study is
`autosegloss.search.settings.StudyConfig`.
"""
