//! What is stored: dead rows, the outbox, modules and tables, and what is left over.

use millrace_engine::findings::{Finding, bytes};
use sqlx::{Executor as _, Row as _};

use super::{Examination, Looked};

/// The marks of an unfinished copy, which are among the modules: of every one, and how that of one source begins.
const COPY_MARK: &str = "an unfinished copy\n";
const COPY_MARK_BEGINS: &str = "an unfinished copy of ";

impl Examination<'_> {
    pub(super) async fn dead_rows(&mut self) -> Looked {
        let rows = self
            .rows(
                "select relname::text as name, n_dead_tup as dead, n_live_tup as live, \
                 greatest(last_autovacuum, last_vacuum)::text as cleaned from pg_stat_user_tables \
                 where schemaname = current_schema() and relname in ('partition', 'chain', 'kind', 'meta', 'state', 'host', 'entry') order by relname",
            )
            .await?;
        let mut found = Vec::new();
        let mut most = 0;
        for row in &rows {
            let (name, dead, live): (String, i64, i64) =
                (row.get("name"), row.get("dead"), row.get("live"));
            most = most.max(dead);
            if dead > self.thresholds.dead_rows && dead > live {
                let cleaned: Option<String> = row.get("cleaned");
                let cleaned = cleaned.unwrap_or_else(|| "never".to_owned());
                let meaning = format!(
                    "{dead} dead rows beside {live} living ones, last cleaned: {cleaned}; each commit reads past them"
                );
                found.push(
                    Finding::note(format!("table {name}"), meaning)
                        .advise("end what has a long snapshot; then `vacuum` the table"),
                );
            }
        }
        if found.is_empty() {
            self.add(Finding::ok(
                "dead rows",
                format!("at most {most} in a table"),
            ));
        }
        self.findings.extend(found);
        Ok(())
    }

    pub(super) async fn outbox(&mut self) -> Looked {
        let find = sqlx::query(
            "select count(*) as waiting, count(*) filter (where tries > 0) as refused, \
             (array_agg(topic || ': ' || error order by id) filter (where error is not null))[1] as why, \
             count(*) filter (where tries = 0 and due < clock_timestamp() - $1 * interval '1 millisecond') as stuck from outbox",
        );
        let wait = self.thresholds.outbox_wait.as_millis() as i64;
        let row = self.connection.fetch_one(find.bind(wait)).await?;
        let count = |column: &str| row.get::<i64, _>(column);
        let (waiting, refused, stuck) = (count("waiting"), count("refused"), count("stuck"));
        if refused > 0 {
            let why: Option<String> = row.get("why");
            let why = why.unwrap_or_default();
            self.add(
                Finding::note("outbox", format!("{refused} messages were refused, the first for this reason: {why}"))
                    .advise("create the topic or correct the row, and it is sent at the next try; or delete the row"),
            );
        }
        if stuck > 0 {
            let seconds = self.thresholds.outbox_wait.as_secs();
            self.add(
                Finding::fault("outbox", format!("{stuck} messages wait for more than {seconds} s, and no host has tried to send them"))
                    .advise("start a host, or look into its log"),
            );
        }
        if refused + stuck == 0 {
            self.add(Finding::ok("outbox", format!("{waiting} messages wait")));
        }
        Ok(())
    }

    pub(super) async fn modules(&mut self) -> Looked {
        let rows = self
            .rows(
                "select encode(m.digest, 'hex') as digest, octet_length(m.bytes)::bigint as size, \
                 case when octet_length(m.bytes) < 4096 then convert_from(substr(m.bytes, 1, 22), 'LATIN1') end as begins from module m \
                 where not exists (select from entry e where e.kind = 'module' and e.key = encode(m.digest, 'hex') and e.value is not null) order by 1",
            )
            .await?;
        let spare = rows.iter().filter_map(|row| {
            let (digest, size): (String, i64) = (row.get("digest"), row.get("size"));
            let begins: Option<String> = row.get("begins");
            match begins.as_deref() {
                Some(COPY_MARK) => Some(
                    Finding::fault(
                        "copy",
                        "a copy into this schema was begun and not completed: no host starts on it",
                    )
                    .advise("repeat the `millrace copy`, which goes on"),
                ),
                Some(COPY_MARK_BEGINS) => None,
                _ => Some(
                    Finding::note(
                        format!("module {digest}"),
                        format!("{size} bytes that no module names"),
                    )
                    .advise("upload the component again if it is needed; otherwise delete the row"),
                ),
            }
        });
        let spare = spare.collect();
        self.add_all("modules", spare);
        let rows = self
            .rows(
                "select e.key from entry e where e.kind = 'module' and e.value is not null \
                 and not exists (select from module m where encode(m.digest, 'hex') = e.key) order by 1",
            )
            .await?;
        let lost = rows.iter().map(|row| {
            let key: String = row.get("key");
            Finding::fault(
                format!("module {key}"),
                "its bytes are missing: no host that starts can load it",
            )
            .advise("upload the same component again")
        });
        let lost = lost.collect();
        self.add_all("modules", lost);
        Ok(())
    }

    /// The space of each topic, and tables and topics that do not belong together.
    pub(super) async fn tables(&mut self) -> Looked {
        let rows = self
            .rows(
                "select t.id, t.name, c.oid is not null as has_table, \
                 coalesce((select sum(pg_total_relation_size(tree.relid)) from pg_partition_tree(c.oid) as tree), 0)::bigint as bytes, \
                 coalesce((select count(*) from pg_partition_tree(c.oid) as tree where tree.isleaf), 0) as leaves, \
                 (select count(*) from partition p where p.topic = t.id) as partitions, \
                 (select coalesce(sum(p.next - p.start), 0) from partition p where p.topic = t.id)::bigint as offsets \
                 from topic t left join pg_class c on c.relname = 'run_' || t.id and c.relnamespace = current_schema()::regnamespace order by t.name",
            )
            .await?;
        let topics = rows.iter().map(|row| {
            let (id, name): (i64, String) = (row.get("id"), row.get("name"));
            let place = format!("topic {name}");
            match row.get("has_table") {
                false => Finding::fault(place, format!("its table run_{id} is missing, and with it its messages"))
                    .advise("restore the database from its backup"),
                true => {
                    let space = bytes(row.get("bytes"));
                    let (leaves, partitions, offsets): (i64, i64, i64) =
                        (row.get("leaves"), row.get("partitions"), row.get("offsets"));
                    Finding::ok(place, format!("{space} in {leaves} leaves of run_{id}, {offsets} offsets in {partitions} partitions"))
                }
            }
        });
        let topics = topics.collect();
        self.add_all("topics", topics);
        let rows = self
            .rows(
                "select c.relname::text as name, pg_total_relation_size(c.oid)::bigint as bytes from pg_class c \
                 where c.relnamespace = current_schema()::regnamespace and c.relkind in ('r', 'p') and c.relname ~ '^run_[0-9]+(_[0-9]+)?$' \
                 and not exists (select from topic t where t.id = split_part(c.relname, '_', 2)::bigint) \
                 and not exists (select from pg_inherits i where i.inhrelid = c.oid) order by 1",
            )
            .await?;
        let spare = rows.iter().map(|row| {
            let (name, size): (String, i64) = (row.get("name"), row.get("bytes"));
            Finding::note(
                format!("table {name}"),
                format!("{} of a topic that does not exist", bytes(size)),
            )
            .advise("drop the table if nobody needs it")
        });
        let spare = spare.collect();
        self.add_all("tables", spare);
        Ok(())
    }
}
