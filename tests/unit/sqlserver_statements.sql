-- schema
BEGIN TRANSACTION;

CREATE TABLE cqrs_schema (
    version_num VARCHAR(32) NOT NULL,
    CONSTRAINT cqrs_schema_pkc PRIMARY KEY (version_num)
);

-- schema
-- Running upgrade  -> 0001

CREATE TABLE cqrs_streams (
    stream_id BIGINT NOT NULL IDENTITY,
    stream_key CHAR(64) COLLATE Latin1_General_100_BIN2 NOT NULL,
    application NVARCHAR(max) COLLATE Latin1_General_100_BIN2 NOT NULL,
    aggregate_type NVARCHAR(max) COLLATE Latin1_General_100_BIN2 NOT NULL,
    aggregate_id NVARCHAR(max) COLLATE Latin1_General_100_BIN2 NOT NULL,
    version BIGINT NOT NULL,
    CONSTRAINT cqrs_streams_pkey PRIMARY KEY (stream_id),
    CONSTRAINT cqrs_streams_key UNIQUE (stream_key)
);

-- schema
CREATE TABLE cqrs_events (
    global_position BIGINT NOT NULL IDENTITY,
    stream_id BIGINT NOT NULL,
    version BIGINT NOT NULL,
    event_id NVARCHAR(200) COLLATE Latin1_General_100_BIN2 NOT NULL,
    type NVARCHAR(max) COLLATE Latin1_General_100_BIN2 NOT NULL,
    type_version INTEGER NOT NULL,
    payload NVARCHAR(max) NOT NULL,
    metadata NVARCHAR(max) NOT NULL,
    recorded_at DATETIME2(6) NOT NULL,
    row_version ROWVERSION NOT NULL,
    CONSTRAINT cqrs_events_pkey PRIMARY KEY (global_position),
    CONSTRAINT cqrs_events_version UNIQUE (stream_id, version)
);

-- schema
CREATE TABLE cqrs_commands (
    command_id NVARCHAR(450) COLLATE Latin1_General_100_BIN2 NOT NULL,
    position BIGINT NOT NULL,
    outcome NVARCHAR(max) NOT NULL,
    expires_at DATETIME2(6) NOT NULL,
    CONSTRAINT cqrs_commands_pkey PRIMARY KEY (command_id)
);

-- schema
CREATE INDEX ix_cqrs_commands_expires_at ON cqrs_commands (expires_at);

-- schema
CREATE TABLE cqrs_checkpoints (
    name NVARCHAR(200) COLLATE Latin1_General_100_BIN2 NOT NULL,
    position BIGINT NOT NULL,
    updated_at DATETIME2(6) NOT NULL,
    CONSTRAINT cqrs_checkpoints_pkey PRIMARY KEY (name)
);

-- schema
CREATE TABLE cqrs_snapshots (
    stream_id BIGINT NOT NULL,
    version BIGINT NOT NULL,
    schema_version INTEGER NOT NULL,
    payload NVARCHAR(max) NOT NULL,
    taken_at DATETIME2(6) NOT NULL,
    CONSTRAINT cqrs_snapshots_pkey PRIMARY KEY (stream_id)
);

-- schema
CREATE TABLE cqrs_subscribers (
    name NVARCHAR(400) COLLATE Latin1_General_100_BIN2 NOT NULL,
    subscriber NVARCHAR(max) NOT NULL,
    registered_at DATETIME2(6) NOT NULL,
    CONSTRAINT cqrs_subscribers_pkey PRIMARY KEY (name)
);

-- schema
CREATE TABLE cqrs_store (
    store_id NVARCHAR(64) COLLATE Latin1_General_100_BIN2 NOT NULL,
    CONSTRAINT cqrs_store_pkey PRIMARY KEY (store_id)
);

-- schema
INSERT INTO cqrs_store (store_id) VALUES (CONVERT(NVARCHAR(64), NEWID()));

-- schema
CREATE UNIQUE INDEX cqrs_events_row_version ON cqrs_events (row_version);

-- schema
INSERT INTO cqrs_schema (version_num) OUTPUT inserted.version_num VALUES ('0001');

-- schema
-- Running upgrade 0001 -> 0002

CREATE TABLE cqrs_relays (
    application NVARCHAR(200) COLLATE Latin1_General_100_BIN2 NOT NULL,
    broker_id NVARCHAR(64) COLLATE Latin1_General_100_BIN2 NOT NULL,
    broker NVARCHAR(max) NOT NULL,
    leader NVARCHAR(max) NOT NULL,
    token NVARCHAR(64) COLLATE Latin1_General_100_BIN2 NOT NULL,
    lease_until_ms BIGINT NOT NULL,
    position BIGINT NULL,
    event_id NVARCHAR(200) COLLATE Latin1_General_100_BIN2 NOT NULL,
    CONSTRAINT cqrs_relays_pkey PRIMARY KEY (application)
);

-- schema
CREATE TABLE cqrs_relay_subscribers (
    application NVARCHAR(200) COLLATE Latin1_General_100_BIN2 NOT NULL,
    name NVARCHAR(200) COLLATE Latin1_General_100_BIN2 NOT NULL,
    subscriber NVARCHAR(max) NOT NULL,
    registered_at DATETIME2(6) NOT NULL,
    CONSTRAINT cqrs_relay_subscribers_pkey PRIMARY KEY (application, name)
);

-- schema
INSERT INTO cqrs_relay_subscribers (application, name, subscriber, registered_at) SELECT '', name, subscriber, registered_at FROM cqrs_subscribers;

-- schema
DROP TABLE cqrs_subscribers;

-- schema
UPDATE cqrs_schema SET version_num='0002' WHERE cqrs_schema.version_num = '0001';

-- schema
COMMIT;

-- append
SELECT cqrs_commands.position, cqrs_commands.outcome
FROM cqrs_commands
WHERE cqrs_commands.command_id = ? AND cqrs_commands.expires_at > ?

-- append
SELECT cqrs_streams.stream_key, cqrs_streams.stream_id, cqrs_streams.version
FROM cqrs_streams WITH (UPDLOCK, HOLDLOCK, ROWLOCK, FORCESEEK)
WHERE cqrs_streams.stream_key IN (?, ?) ORDER BY cqrs_streams.stream_key

-- append
INSERT INTO cqrs_streams (stream_key, application, aggregate_type, aggregate_id, version) VALUES (?, ?, ?, ?, ?)

-- append
SELECT cqrs_streams.stream_key, cqrs_streams.stream_id, cqrs_streams.version
FROM cqrs_streams WITH (UPDLOCK, HOLDLOCK, ROWLOCK, FORCESEEK)
WHERE cqrs_streams.stream_key IN (?) ORDER BY cqrs_streams.stream_key

-- append
UPDATE cqrs_streams SET version=? WHERE cqrs_streams.stream_id = ?

-- append
INSERT INTO cqrs_events (stream_id, version, event_id, type, type_version, payload, metadata, recorded_at) VALUES (?, ?, ?, ?, ?, ?, ?, ?)

-- append
INSERT INTO cqrs_events (stream_id, version, event_id, type, type_version, payload, metadata, recorded_at) VALUES (?, ?, ?, ?, ?, ?, ?, ?)

-- append
SELECT CAST(cqrs_events.row_version AS BIGINT) AS position
FROM cqrs_events
WHERE cqrs_events.stream_id = ? AND cqrs_events.version = ?

-- append
SELECT cqrs_commands.position, cqrs_commands.outcome
FROM cqrs_commands
WHERE cqrs_commands.command_id = ? AND cqrs_commands.expires_at > ?

-- append
DELETE FROM cqrs_commands WHERE cqrs_commands.command_id = ?

-- append
INSERT INTO cqrs_commands (command_id, position, outcome, expires_at) VALUES (?, ?, ?, ?)

-- read_stream
SELECT TOP 10 CAST(cqrs_events.row_version AS BIGINT) AS position, cqrs_events.version, cqrs_events.event_id, cqrs_events.type, cqrs_events.type_version, cqrs_events.payload AS payload, cqrs_events.metadata AS metadata, cqrs_events.recorded_at
FROM cqrs_events
WHERE cqrs_events.stream_id = (SELECT cqrs_streams.stream_id
FROM cqrs_streams
WHERE cqrs_streams.stream_key = ?) AND cqrs_events.version > ? ORDER BY cqrs_events.version

-- read_all
DECLARE @end BINARY(8) = MIN_ACTIVE_ROWVERSION(); SELECT cqrs_streams.application, cqrs_streams.aggregate_type, cqrs_streams.aggregate_id, CAST(page.row_version AS BIGINT) AS position, page.version, page.event_id, page.type, page.type_version, page.payload, page.metadata, page.recorded_at FROM (SELECT TOP (?) row_version, stream_id, version, event_id, type, type_version, payload, metadata, recorded_at FROM cqrs_events WITH (FORCESEEK) WHERE row_version > ? AND row_version < @end ORDER BY row_version) AS page JOIN cqrs_streams ON cqrs_streams.stream_id = page.stream_id ORDER BY page.row_version

-- find_command
SELECT cqrs_commands.position, cqrs_commands.outcome
FROM cqrs_commands
WHERE cqrs_commands.command_id = ? AND cqrs_commands.expires_at > ?

-- last_position
SELECT TOP 1 CAST(cqrs_events.row_version AS BIGINT) AS row_version
FROM cqrs_events ORDER BY cqrs_events.row_version DESC

-- pending
SELECT count(*) AS count_1, min(cqrs_events.recorded_at) AS min_1
FROM cqrs_events
WHERE cqrs_events.row_version > ?

-- read_history
SELECT cqrs_events.version, cqrs_events.type, cqrs_events.type_version, CASE WHEN (cqrs_events.version > ?) THEN cqrs_events.payload END AS payload, CASE WHEN (cqrs_events.version <= ? OR cqrs_events.version = (SELECT cqrs_streams.version
FROM cqrs_streams
WHERE cqrs_streams.stream_key = ?)) THEN cqrs_events.event_id END AS event_id
FROM cqrs_events
WHERE cqrs_events.stream_id = (SELECT cqrs_streams.stream_id
FROM cqrs_streams
WHERE cqrs_streams.stream_key = ?) AND cqrs_events.version > ? ORDER BY cqrs_events.version

-- leader_of_another
SELECT cqrs_relays.leader, cqrs_relays.application
FROM cqrs_relays
WHERE cqrs_relays.broker_id = ? AND cqrs_relays.broker_id != ? AND cqrs_relays.application != ? AND cqrs_relays.lease_until_ms > datediff_big(ms, '19700101', sysutcdatetime())

-- find_snapshot
SELECT cqrs_snapshots.version, cqrs_snapshots.schema_version, cqrs_snapshots.taken_at, cqrs_snapshots.payload AS payload
FROM cqrs_snapshots JOIN cqrs_streams ON cqrs_streams.stream_id = cqrs_snapshots.stream_id
WHERE cqrs_streams.stream_key = ?

-- find_with_newer
WITH snapshot AS
(SELECT cqrs_snapshots.version AS version, cqrs_snapshots.schema_version AS schema_version, cqrs_snapshots.payload AS payload, cqrs_snapshots.taken_at AS taken_at
FROM cqrs_snapshots JOIN cqrs_streams ON cqrs_streams.stream_id = cqrs_snapshots.stream_id
WHERE cqrs_streams.stream_key = ? AND cqrs_snapshots.schema_version = ?)
 SELECT 0 AS position, snapshot.version, '' AS event_id, '' AS type, snapshot.schema_version, snapshot.payload, '' AS metadata, snapshot.taken_at
FROM snapshot UNION ALL SELECT CAST(cqrs_events.row_version AS BIGINT) AS position, cqrs_events.version, cqrs_events.event_id, cqrs_events.type, cqrs_events.type_version, cqrs_events.payload AS payload, cqrs_events.metadata AS metadata, cqrs_events.recorded_at
FROM cqrs_events
WHERE cqrs_events.stream_id = (SELECT cqrs_streams.stream_id
FROM cqrs_streams
WHERE cqrs_streams.stream_key = ?) AND cqrs_events.version > coalesce((SELECT snapshot.version
FROM snapshot), 0) ORDER BY version

-- snapshots
SELECT TOP 500 cqrs_streams.stream_id, cqrs_streams.application, cqrs_streams.aggregate_type, cqrs_streams.aggregate_id
FROM cqrs_streams JOIN cqrs_snapshots ON cqrs_snapshots.stream_id = cqrs_streams.stream_id
WHERE cqrs_streams.application = ? AND cqrs_streams.aggregate_type = ? AND cqrs_streams.stream_id > ? ORDER BY cqrs_streams.stream_id

-- put_snapshot
SELECT (SELECT cqrs_streams.stream_id
FROM cqrs_streams
WHERE cqrs_streams.stream_key = ?) AS anon_1

-- put_snapshot
SELECT cqrs_snapshots.version
FROM cqrs_snapshots
WHERE cqrs_snapshots.stream_id = ?

-- put_snapshot
INSERT INTO cqrs_snapshots (stream_id, version, schema_version, payload, taken_at) VALUES (?, ?, ?, ?, ?)

-- replace_snapshot
SELECT (SELECT cqrs_streams.stream_id
FROM cqrs_streams
WHERE cqrs_streams.stream_key = ?) AS anon_1

-- replace_snapshot
SELECT cqrs_snapshots.version
FROM cqrs_snapshots
WHERE cqrs_snapshots.stream_id = ?

-- replace_snapshot
UPDATE cqrs_snapshots SET version=?, schema_version=?, payload=?, taken_at=? OUTPUT inserted.stream_id WHERE cqrs_snapshots.stream_id = ? AND (cqrs_snapshots.schema_version != ? OR cqrs_snapshots.version <= ?)

-- remove_snapshot
DELETE FROM cqrs_snapshots OUTPUT deleted.stream_id WHERE cqrs_snapshots.stream_id = (SELECT cqrs_streams.stream_id
FROM cqrs_streams
WHERE cqrs_streams.stream_key = ?)

-- register
UPDATE cqrs_relay_subscribers SET subscriber=?, registered_at=? OUTPUT inserted.application, inserted.name WHERE cqrs_relay_subscribers.application = ? AND cqrs_relay_subscribers.name = ?

-- register
INSERT INTO cqrs_relay_subscribers (application, name, subscriber, registered_at) VALUES (?, ?, ?, ?)

-- register
DELETE FROM cqrs_relay_subscribers WHERE cqrs_relay_subscribers.application = ? AND cqrs_relay_subscribers.name = ?

-- unregister
UPDATE cqrs_relay_subscribers SET registered_at=cqrs_relay_subscribers.registered_at OUTPUT inserted.application, inserted.name WHERE cqrs_relay_subscribers.application = ? AND cqrs_relay_subscribers.name = ? OR cqrs_relay_subscribers.application = ? AND cqrs_relay_subscribers.name = ?

-- unregister
SELECT cqrs_relay_subscribers.subscriber
FROM cqrs_relay_subscribers
WHERE cqrs_relay_subscribers.application = ? AND cqrs_relay_subscribers.name = ? OR cqrs_relay_subscribers.application = ? AND cqrs_relay_subscribers.name = ? ORDER BY cqrs_relay_subscribers.application DESC

-- unregister
DELETE FROM cqrs_relay_subscribers WHERE cqrs_relay_subscribers.application = ? AND cqrs_relay_subscribers.name = ? OR cqrs_relay_subscribers.application = ? AND cqrs_relay_subscribers.name = ?

-- forget_expired_commands
DELETE FROM cqrs_commands WITH (UPDLOCK, READPAST, ROWLOCK) OUTPUT deleted.command_id WHERE cqrs_commands.command_id IN (SELECT TOP 4000 cqrs_commands.command_id
FROM cqrs_commands WITH (UPDLOCK, READPAST, ROWLOCK)
WHERE cqrs_commands.expires_at <= ? ORDER BY cqrs_commands.expires_at) AND cqrs_commands.expires_at <= ?

-- claim_relay
UPDATE cqrs_relays SET broker_id=?, broker=?, leader=?, token=?, lease_until_ms=(datediff_big(ms, '19700101', sysutcdatetime()) + ?) WHERE cqrs_relays.application = ? AND cqrs_relays.broker_id = ? AND (cqrs_relays.lease_until_ms <= datediff_big(ms, '19700101', sysutcdatetime()) OR cqrs_relays.lease_until_ms > datediff_big(ms, '19700101', sysutcdatetime()) + ?) AND NOT (EXISTS (SELECT other.application
FROM cqrs_relays AS other
WHERE other.application != ? AND other.broker_id = ? AND other.broker_id != ? AND other.lease_until_ms > datediff_big(ms, '19700101', sysutcdatetime()) AND other.lease_until_ms <= datediff_big(ms, '19700101', sysutcdatetime()) + ?))

-- renew_relay
UPDATE cqrs_relays SET lease_until_ms=(datediff_big(ms, '19700101', sysutcdatetime()) + ?) WHERE cqrs_relays.application = ? AND cqrs_relays.token = ? AND cqrs_relays.lease_until_ms > datediff_big(ms, '19700101', sysutcdatetime())

-- save_checkpoint
UPDATE cqrs_relays SET position=?, event_id=? WHERE (cqrs_relays.application = ? OR cqrs_relays.broker_id = ? AND cqrs_relays.broker_id != ?) AND (EXISTS (SELECT own.token
FROM cqrs_relays AS own
WHERE own.application = ? AND own.token = ?)) AND (EXISTS (SELECT cqrs_events.event_id
FROM cqrs_events
WHERE cqrs_events.row_version > ? AND cqrs_events.row_version <= ? AND cqrs_events.event_id = ?))

-- note_new_broker_id
UPDATE cqrs_relays SET broker_id=? WHERE cqrs_relays.broker_id = ? AND cqrs_relays.broker_id != ? AND cqrs_relays.broker = ? AND (EXISTS (SELECT own.token
FROM cqrs_relays AS own
WHERE own.application = ? AND own.token = ?))

-- move_relay
UPDATE cqrs_relays SET broker_id=?, broker=?, leader=?, token=?, lease_until_ms=(datediff_big(ms, '19700101', sysutcdatetime()) + ?) WHERE cqrs_relays.application = ? AND cqrs_relays.broker_id = ? AND (cqrs_relays.lease_until_ms <= datediff_big(ms, '19700101', sysutcdatetime()) OR cqrs_relays.lease_until_ms > datediff_big(ms, '19700101', sysutcdatetime()) + ?) AND NOT (EXISTS (SELECT other.application
FROM cqrs_relays AS other
WHERE other.application != ? AND other.broker_id = ? AND other.broker_id != ? AND other.broker = ? AND other.lease_until_ms > datediff_big(ms, '19700101', sysutcdatetime()) AND other.lease_until_ms <= datediff_big(ms, '19700101', sysutcdatetime()) + ?))

-- move_relay
UPDATE cqrs_relays SET token=?, lease_until_ms=? WHERE cqrs_relays.application != ? AND cqrs_relays.broker_id = ? AND cqrs_relays.broker_id != ? AND (EXISTS (SELECT own.token
FROM cqrs_relays AS own
WHERE own.application = ? AND own.token = ?))

-- join_relay
UPDATE cqrs_relays SET broker_id=?, broker=?, position=? WHERE cqrs_relays.application = ? AND cqrs_relays.broker_id = ?

-- release_relay
UPDATE cqrs_relays SET lease_until_ms=? WHERE cqrs_relays.application = ? AND cqrs_relays.token = ?

