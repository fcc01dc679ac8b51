-- The schema of an engine on PostgreSQL, version 1. It is created in a schema of its own, which is first in the search path.
--
-- Lock order of every transaction: rows of `partition`, rows of `chain`, advisory locks of request keys, rows of `kind`; each kind of row
-- in the order of its key.

-- What other versions of the host must know: the version of this schema.
create table meta (name text primary key, value bigint not null);
insert into meta values ('schema', 1), ('producer', 0);

-- A host that lives holds the advisory lock of its row in a session, and renews `seen_at`.
create table host (
  id bigint primary key,
  address text not null,
  release text not null,
  lock_id int not null,
  seen_at timestamptz not null
);

-- How often entries of a kind, or topics, were written. Whoever writes one, or decides on one, locks its kind.
create table kind (kind text primary key, version bigint not null default 0);
insert into kind (kind) values
  ('damage'), ('module'), ('newest'), ('processor'), ('redriven'), ('route'), ('schedule'), ('topic');

-- The catalogue. A removed entry stays as a row without a value until every host has heard of it.
create table entry (
  kind text not null references kind,
  key text not null,
  value bytea,
  version bigint not null,
  primary key (kind, key)
);
create index entry_version on entry (kind, version);

create table topic (
  id bigint generated always as identity primary key,
  name text not null unique,
  spec jsonb not null,
  -- The leaf of its table that takes new messages.
  bucket int not null default 0
);

-- `start` and `next` only grow.
create table partition (
  topic bigint not null references topic,
  number int not null,
  start bigint not null default 0,
  next bigint not null default 0,
  durable boolean not null,
  primary key (topic, number)
) with (fillfactor = 30);

-- A group in a partition: its newest lease, who holds it, its progress, and how often its state was written.
create table chain (
  id bigint generated always as identity primary key,
  topic bigint not null,
  number int not null,
  grp text not null,
  epoch bigint not null default 0,
  holder bigint,
  -- Whether the holder works; otherwise it is an operator's claim.
  works boolean not null default false,
  -- Whether a host that worked ended without releasing it, and the next holder has not been told.
  abandoned boolean not null default false,
  progress bytea,
  state_seq bigint not null default 0,
  -- Writes up to this one can no longer be told apart: whoever knows less reads everything.
  state_floor bigint not null default 0,
  unique (topic, number, grp),
  foreign key (topic, number) references partition
) with (fillfactor = 30);
create index chain_group on chain (grp);

-- State by key. A removed key stays as a row without a value until every host has heard of it.
create table state (
  chain bigint not null references chain on delete cascade,
  key bytea not null,
  value bytea,
  ends_at bigint,
  seq bigint not null,
  primary key (chain, key)
);
alter table state alter column value set storage external;
create index state_seq on state (chain, seq);
create index state_ends on state (ends_at) where ends_at is not null;

-- The last batches of producers that number them.
create table producer (
  topic bigint not null,
  number int not null,
  id bigint not null,
  epoch smallint not null,
  seen_at bigint not null,
  sent bytea not null,
  primary key (topic, number, id),
  foreign key (topic, number) references partition on delete cascade
);
create index producer_seen on producer (seen_at);

create table producer_name (
  name text primary key,
  id bigint not null unique,
  epoch smallint not null,
  at bigint not null
);

-- Requests with a key, for as long as a repeat is known.
create table request (
  topic bigint not null references topic on delete cascade,
  key bytea not null,
  fingerprint bytea not null,
  at bigint not null,
  offsets bytea not null,
  note bytea not null,
  primary key (topic, key)
);
create index request_at on request (at);

create table module (digest bytea primary key, bytes bytea not null);
alter table module alter column bytes set storage external;
