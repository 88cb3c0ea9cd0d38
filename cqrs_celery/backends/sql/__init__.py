"""What SQL engines share, on SQLAlchemy Core: tables, reading, a portable append, migrations."""
