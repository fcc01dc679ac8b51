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

create table leaf (
  topic bigint not null references topic on delete cascade,
  bucket int not null,
  made_at bigint not null,
  primary key (topic, bucket)
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
  -- What was written when removed keys were last looked for.
  state_mark bigint not null default 0,
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

-- For people and their tools, whose search path is another. Messages are stored as record batches of Kafka's format, version 2, several to a row.

-- The text of bytes; those that are no text are shown in hexadecimal digits.
create function as_text(bytes bytea) returns text language plpgsql immutable parallel safe as $$
begin
  return convert_from(bytes, 'UTF8');
exception when others then
  return bytes::text;
end $$;

-- The messages of a row whose first offset is `first`. A compressed batch is one line that says so. Numbers are read where they stand: a
-- function call for each would take longer than everything else.
create function records(stored bytea, first bigint)
  returns table ("offset" bigint, created_at timestamptz, key bytea, payload bytea, headers jsonb, note text)
  language plpgsql immutable parallel safe set search_path from current as $$
declare
  -- A copy: reading single bytes of a stored value fetches it each time.
  b bytea := stored || ''::bytea;
  start int := 0;
  pos int;
  stop int;
  attributes int;
  base bigint;
  base_time bigint;
  count int;
  number bigint;
  shift int;
  byte int;
  fields bigint[];
  header_count bigint;
  header_name text;
  header_value text;
begin
  while start + 61 <= length(b) loop
    base := first + ('x' || encode(substr(b, start + 1, 8), 'hex'))::bit(64)::bigint;
    stop := start + 12 + ('x' || encode(substr(b, start + 9, 4), 'hex'))::bit(32)::int;
    attributes := get_byte(b, start + 22);
    base_time := ('x' || encode(substr(b, start + 28, 8), 'hex'))::bit(64)::bigint;
    count := ('x' || encode(substr(b, start + 58, 4), 'hex'))::bit(32)::int;
    pos := start + 61;
    if attributes & 7 <> 0 then
      "offset" := base;
      created_at := to_timestamp(base_time / 1000.0);
      key := null;
      payload := null;
      headers := null;
      note := count || ' messages, compressed by codec ' || (attributes & 7) || ': read them through the host';
      return next;
    elsif attributes & 32 = 0 then
      for record in 1..count loop
        -- Length, attributes, time, offset, key's length.
        fields := '{}';
        for field in 1..5 loop
          if field = 2 then
            pos := pos + 1;
            continue;
          end if;
          number := 0;
          shift := 0;
          loop
            byte := get_byte(b, pos);
            pos := pos + 1;
            number := number | ((byte & 127)::bigint << shift);
            exit when byte < 128;
            shift := shift + 7;
          end loop;
          fields := fields || ((number >> 1) # -(number & 1));
        end loop;
        "offset" := base + fields[3];
        created_at := to_timestamp((base_time + fields[2]) / 1000.0);
        key := null;
        if fields[4] >= 0 then
          key := substr(b, pos + 1, fields[4]::int);
          pos := pos + fields[4]::int;
        end if;
        number := 0;
        shift := 0;
        loop
          byte := get_byte(b, pos);
          pos := pos + 1;
          number := number | ((byte & 127)::bigint << shift);
          exit when byte < 128;
          shift := shift + 7;
        end loop;
        number := (number >> 1) # -(number & 1);
        payload := null;
        if number >= 0 then
          payload := substr(b, pos + 1, number::int);
          pos := pos + number::int;
        end if;
        number := 0;
        shift := 0;
        loop
          byte := get_byte(b, pos);
          pos := pos + 1;
          number := number | ((byte & 127)::bigint << shift);
          exit when byte < 128;
          shift := shift + 7;
        end loop;
        header_count := (number >> 1) # -(number & 1);
        headers := '{}';
        for part in 1..(2 * header_count)::int loop
          number := 0;
          shift := 0;
          loop
            byte := get_byte(b, pos);
            pos := pos + 1;
            number := number | ((byte & 127)::bigint << shift);
            exit when byte < 128;
            shift := shift + 7;
          end loop;
          number := (number >> 1) # -(number & 1);
          header_value := null;
          if number >= 0 then
            header_value := as_text(substr(b, pos + 1, number::int));
            pos := pos + number::int;
          end if;
          if part % 2 = 1 then
            header_name := header_value;
          else
            headers := headers || jsonb_build_object(header_name, header_value);
          end if;
        end loop;
        note := null;
        return next;
      end loop;
    end if;
    start := stop;
  end loop;
end $$;

-- The messages of a topic's partition between two offsets, the second one exclusive; without them, all that are kept.
create function messages(topic text, partition int, from_offset bigint default 0, to_offset bigint default 9223372036854775807)
  returns table ("offset" bigint, created_at timestamptz, key bytea, payload bytea, headers jsonb, note text)
  language plpgsql stable set search_path from current as $$
declare
  id bigint;
  first bigint;
begin
  select p.topic, greatest(p.start, from_offset) into id, first from topic t join partition p on p.topic = t.id
    where t.name = messages.topic and p.number = messages.partition;
  if id is null then
    return;
  end if;
  return query execute format(
    'select m.* from (select base, bytes from run_%s where number = $1 and next > $2 and base < $3 order by next) as r, records(r.bytes, r.base) as m '
    'where m."offset" >= $2 and m."offset" < $3', id) using messages.partition, first, to_offset;
end $$;

create view broker_messages as
  select t.name as topic, p.number as partition, m."offset", m.created_at, as_text(m.key) as key, as_text(m.payload) as payload, m.headers, m.note
  from topic t join partition p on p.topic = t.id cross join lateral messages(t.name, p.number) as m;

-- Progress begins with its version and the next offset, the lowest byte first.
create view consumer_offsets as
  select c.grp as consumer_group, t.name as topic, c.number as partition,
    (select sum(get_byte(c.progress, 1 + byte)::numeric * (256::numeric ^ byte)) from generate_series(0, 7) as byte)::bigint as next_offset,
    p.next as end_offset
  from chain c join topic t on t.id = c.topic join partition p on p.topic = c.topic and p.number = c.number
  where c.progress is not null;

-- Dead letters; their evidence is in the headers.
create view broker_dlq as
  select t.name as topic, t.spec ->> 'owner' as processor, p.number as partition, m."offset", m.created_at, as_text(m.key) as key,
    as_text(m.payload) as payload, m.headers
  from topic t join partition p on p.topic = t.id cross join lateral messages(t.name, p.number) as m
  where t.spec ->> 'owner' is not null and t.name like '%.dlq';
