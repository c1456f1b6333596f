//! `LISTEN`: a session is told when events of topics are committed.
//!
//! A hint, not a delivery: of each topic at most one notification waits, however many events there are. Who listens is
//! woken by the partitions themselves, so a topic without new events costs nothing. What a transaction block says takes
//! effect at its COMMIT, as in PostgreSQL. Leaves out the message and when it may be sent (server). A crash or a lost
//! connection forgets it.

use crate::engine::Result;
use crate::engine::session::Session;
use crate::storage::Partitions;
use futures::future::{AbortHandle, Abortable, select_all};
use futures::stream::{self, BoxStream, SelectAll};
use futures::{FutureExt as _, StreamExt as _};
use millstream_catalog::model::limit::{LISTEN_STEPS_MAX, LISTEN_TOPICS_MAX};
use millstream_catalog::model::{Name, Offset, SqlState, TopicId};
use millstream_sql::SqlError;
use millstream_sql::dialect::Ident;
use parking_lot::Mutex;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;
use tokio::sync::watch;

/// The topics that a session listens to.
#[derive(Default)]
pub(crate) struct Listening {
    /// By channel, which is the name that was listened to.
    channels: BTreeMap<Name, Listener>,
    /// What comes of all of them. Never locked: it makes the session one that threads may share.
    changes: Mutex<SelectAll<BoxStream<'static, (Name, Change)>>>,
    /// Channels whose notification waits.
    due: BTreeSet<Name>,
    /// What the transaction at hand said, in order.
    steps: Vec<Step>,
}

impl fmt::Debug for Listening {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Listening").field("channels", &self.channels.keys()).field("due", &self.due).finish()
    }
}

/// One channel; dropped, nobody follows its topic any more.
struct Listener {
    topic: TopicId,
    following: AbortHandle,
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.following.abort();
    }
}

/// What is to happen when the transaction commits.
#[derive(Debug, Clone)]
pub(crate) enum Step {
    Listen(Name, Arc<Partitions>, TopicId),
    Unlisten(Name),
    UnlistenAll,
    /// Nothing: the place to which `ROLLBACK TO` cuts back.
    Savepoint(Name),
}

/// What became of a topic.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Change {
    /// There are more events.
    Grown,
    /// It was dropped.
    Gone,
}

/// A topic that somebody listens to.
struct Followed {
    partitions: Arc<Partitions>,
    topic: TopicId,
    /// Of each partition: the end that is known, and what tells of a new one.
    ends: Vec<(Offset, watch::Receiver<Offset>)>,
    /// The topic is gone for sure.
    is_gone: bool,
}

impl Followed {
    /// Follows a topic from its end on.
    fn new(partitions: Arc<Partitions>, topic: TopicId) -> Self {
        let mut followed = Self { partitions, topic, ends: Vec::new(), is_gone: false };
        followed.has_grown();
        followed
    }

    /// Whether any partition has new events since the last call; those of added partitions are new.
    fn has_grown(&mut self) -> bool {
        let partitions = self.partitions.topic(self.topic);
        for partition in partitions.iter().flat_map(|all| all.iter()).skip(self.ends.len()) {
            self.ends.push((Offset::ZERO, partition.subscribe()));
        }
        let mut has_grown = false;
        for (known, end) in &mut self.ends {
            let now = *end.borrow_and_update();
            has_grown |= now > *known;
            *known = now;
        }
        has_grown
    }

    /// Waits for the next change.
    async fn changed(&mut self) -> Change {
        loop {
            if self.has_grown() {
                return Change::Grown;
            }
            if self.is_gone || self.ends.is_empty() || self.partitions.topic(self.topic).is_none() {
                return Change::Gone;
            }
            let (result, ..) = select_all(self.ends.iter_mut().map(|(_, end)| Box::pin(end.changed()))).await;
            // Nobody is left who would tell.
            self.is_gone = result.is_err();
        }
    }

    /// Every change; the last one is that it is gone.
    fn changes(self, channel: Name) -> impl stream::Stream<Item = (Name, Change)> {
        stream::unfold(Some(self), move |followed| {
            let channel = channel.clone();
            async move {
                let mut followed = followed?;
                let change = followed.changed().await;
                Some(((channel, change), (change == Change::Grown).then_some(followed)))
            }
        })
    }
}

impl Listening {
    /// Whether anything may come.
    fn is_any(&self) -> bool {
        !self.channels.is_empty() || !self.due.is_empty()
    }

    /// Begins to follow a topic; again, if the channel is another topic's by now.
    fn listen(&mut self, channel: Name, partitions: Arc<Partitions>, topic: TopicId) {
        if self.channels.get(&channel).is_some_and(|listener| listener.topic == topic) {
            return;
        }
        let (following, registration) = AbortHandle::new_pair();
        let changes = Followed::new(partitions, topic).changes(channel.clone());
        self.changes.get_mut().push(Abortable::new(changes, registration).boxed());
        self.channels.insert(channel, Listener { topic, following });
    }

    fn unlisten(&mut self, channel: &Name) {
        self.channels.remove(channel);
        self.due.remove(channel);
        if self.channels.is_empty() {
            // What was switched off leaves when it is polled next, and nobody may.
            self.changes = Mutex::default();
        }
    }

    fn unlisten_all(&mut self) {
        self.channels.clear();
        self.due.clear();
        self.changes = Mutex::default();
    }

    fn note(&mut self, (channel, change): (Name, Change)) {
        if change == Change::Gone {
            self.channels.remove(&channel);
        }
        self.due.insert(channel);
    }

    /// Waits until a notification is due; for ever, where nothing is listened to.
    ///
    /// # Cancellation
    /// Safe: what came is kept.
    async fn notified(&mut self) {
        while self.due.is_empty() {
            match self.changes.get_mut().next().await {
                Some(change) => self.note(change),
                None => std::future::pending().await,
            }
        }
    }

    /// The channels whose notification is due, each once.
    fn take(&mut self) -> BTreeSet<Name> {
        // As many as there are: one that grows all the time does not keep the others waiting.
        for _ in 0..=self.channels.len() {
            match self.changes.get_mut().next().now_or_never().flatten() {
                Some(change) => self.note(change),
                None => break,
            }
        }
        std::mem::take(&mut self.due)
    }

    /// Keeps a step until the transaction commits.
    fn keep(&mut self, step: Step) -> Result<()> {
        if self.steps.len() >= LISTEN_STEPS_MAX {
            let error = SqlError::new(SqlState::ConfigurationLimitExceeded, "too many LISTEN and UNLISTEN");
            return Err(error.detail(format!("a transaction may have {LISTEN_STEPS_MAX}")).hint("COMMIT first"));
        }
        self.steps.push(step);
        Ok(())
    }

    /// Refuses one more channel over the limit, counting what the transaction said before.
    fn check_limit(&self, channel: &Ident) -> Result<()> {
        if self.channels.len() + self.steps.len() < LISTEN_TOPICS_MAX {
            return Ok(());
        }
        let mut wanted: BTreeSet<&Name> = self.channels.keys().collect();
        for step in &self.steps {
            match step {
                Step::Listen(name, ..) => drop(wanted.insert(name)),
                Step::Unlisten(name) => drop(wanted.remove(name)),
                Step::UnlistenAll => wanted.clear(),
                Step::Savepoint(_) => {}
            }
        }
        if wanted.len() < LISTEN_TOPICS_MAX || wanted.contains(&channel.name) {
            return Ok(());
        }
        Err(SqlError::new(SqlState::ConfigurationLimitExceeded, "too many topics to listen to")
            .detail(format!("a session may listen to {LISTEN_TOPICS_MAX}"))
            .hint("UNLISTEN those that are not needed")
            .at(channel.position))
    }

    /// `SAVEPOINT name`. One before the first step is cut back to by forgetting all of them.
    pub(crate) fn save(&mut self, name: &Name) {
        if !self.steps.is_empty() {
            self.steps.push(Step::Savepoint(name.clone()));
        }
    }

    fn savepoint(&self, name: &Name) -> Option<usize> {
        self.steps.iter().rposition(|step| matches!(step, Step::Savepoint(saved) if saved == name))
    }

    /// `RELEASE name`: those set later go with it.
    pub(crate) fn release(&mut self, name: &Name) {
        let from = self.savepoint(name).unwrap_or(0);
        let mut at = 0;
        self.steps.retain(|step| {
            at += 1;
            at <= from || !matches!(step, Step::Savepoint(_))
        });
    }

    /// `ROLLBACK TO name`.
    pub(crate) fn roll_back_to(&mut self, name: &Name) {
        let kept = self.savepoint(name).map_or(0, |at| at + 1);
        self.steps.truncate(kept);
    }

    /// What the transaction said, which has ended.
    pub(crate) fn end_transaction(&mut self) -> Vec<Step> {
        std::mem::take(&mut self.steps)
    }

    /// What a committed transaction said.
    pub(crate) fn apply(&mut self, steps: Vec<Step>) {
        for step in steps {
            match step {
                Step::Listen(channel, partitions, topic) => self.listen(channel, partitions, topic),
                Step::Unlisten(channel) => self.unlisten(&channel),
                Step::UnlistenAll => self.unlisten_all(),
                Step::Savepoint(_) => {}
            }
        }
    }
}

impl Session {
    /// `LISTEN channel`
    pub(crate) async fn listen(&mut self, channel: &Ident) -> Result<&'static str> {
        let (partitions, topic) = self.listened(channel).await?;
        self.listening.check_limit(channel)?;
        self.say(Step::Listen(channel.name.clone(), partitions, topic))?;
        Ok("LISTEN")
    }

    /// `UNLISTEN channel | *`; one that is not listened to is no error.
    pub(crate) fn unlisten(&mut self, channel: Option<&Ident>) -> Result<&'static str> {
        self.say(channel.map_or(Step::UnlistenAll, |channel| Step::Unlisten(channel.name.clone())))?;
        Ok("UNLISTEN")
    }

    /// Takes a step, now or at COMMIT.
    fn say(&mut self, step: Step) -> Result<()> {
        match self.transaction.is_open() {
            true => self.listening.keep(step),
            false => {
                self.listening.apply(vec![step]);
                Ok(())
            }
        }
    }

    /// The topic of that name, once it has partitions: just after its definition it may have none.
    async fn listened(&self, name: &Ident) -> Result<(Arc<Partitions>, TopicId)> {
        let mut versions = self.engine.replication().catalog().subscribe();
        loop {
            let catalog = self.engine.catalog();
            let Some(relation) = catalog.relation(name.as_str()) else {
                if catalog.view(name.as_str()).is_some() {
                    let error =
                        SqlError::new(SqlState::WrongObjectType, format!("\"{name}\" is not a stream or table"));
                    return Err(error.detail("it is a view").hint("LISTEN to what it reads").at(name.position));
                }
                let message = format!("relation \"{name}\" does not exist");
                return Err(SqlError::new(SqlState::UndefinedTable, message).at(name.position));
            };
            let partitions = self.engine.shard_of(relation)?.partitions();
            let mut applied = partitions.subscribe_applied();
            if partitions.topic(relation.id).is_some() {
                return Ok((partitions, relation.id));
            }
            tokio::select! {
                _ = applied.changed() => {}
                _ = versions.changed() => {}
            }
        }
    }

    /// Whether notifications may come.
    pub fn is_listening(&self) -> bool {
        self.listening.is_any()
    }

    /// Waits until a notification is due; for ever, where nothing is listened to.
    ///
    /// # Cancellation
    /// Safe: what came is kept.
    pub async fn notified(&mut self) {
        self.listening.notified().await;
    }

    /// The channels whose notification is due, each once however many events there are; none of them is due any more.
    pub fn take_notifications(&mut self) -> impl Iterator<Item = Name> + use<> {
        let due = if self.listening.is_any() { self.listening.take() } else { BTreeSet::new() };
        due.into_iter()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::Engine;
    use crate::engine::tests::{SetClock, in_time, open, run, session};
    use crate::storage::FaultDisk;
    use millstream_catalog::model::{EntryIndex, ShardId};
    use millstream_sql::dialect::Position;

    async fn engine() -> Arc<Engine> {
        let engine = open(&FaultDisk::new(), Arc::<SetClock>::default()).await.unwrap();
        let mut writer = session(&engine);
        let sql = "CREATE STREAM a (v int) WITH (partitions = 3); CREATE STREAM b (v int); \
                   CREATE TABLE t (k int PRIMARY KEY, v int); CREATE VIEW seen AS SELECT v FROM a";
        run(&mut writer, sql).await.unwrap();
        engine
    }

    /// What is due now, without waiting.
    fn due(session: &mut Session) -> Vec<String> {
        session.take_notifications().map(|channel| channel.to_string()).collect()
    }

    /// What is due once anything is.
    async fn next(session: &mut Session) -> Vec<String> {
        in_time("a notification", session.notified()).await;
        due(session)
    }

    async fn all(session: &mut Session, statements: &[&str]) {
        for sql in statements {
            run(session, sql).await.unwrap_or_else(|error| panic!("{sql}: {error}"));
        }
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn any_number_of_events_is_one_notification_of_each_topic() {
        let engine = engine().await;
        let (mut listener, mut writer) = (session(&engine), session(&engine));
        all(&mut writer, &["INSERT INTO a VALUES (0)"]).await;
        assert!(!listener.is_listening());
        all(&mut listener, &["LISTEN a", "LISTEN t", "LISTEN a"]).await;
        assert!(listener.is_listening());
        assert_eq!(due(&mut listener), [""; 0]);
        assert!(listener.notified().now_or_never().is_none());
        for v in 0..20 {
            all(&mut writer, &[&format!("INSERT INTO a VALUES ({v}), ({v})"), "INSERT INTO b VALUES (1)"]).await;
        }
        assert_eq!(next(&mut listener).await, ["a"]);
        assert_eq!(due(&mut listener), [""; 0]);
        assert!(listener.notified().now_or_never().is_none());
        all(&mut writer, &["BEGIN; INSERT INTO t VALUES (1, 1); INSERT INTO a VALUES (1); COMMIT"]).await;
        assert_eq!(next(&mut listener).await, ["a", "t"]);
        all(&mut writer, &["UPDATE t SET v = 2", "DELETE FROM t"]).await;
        assert_eq!(next(&mut listener).await, ["t"]);
        // Nothing that is not an event.
        all(&mut writer, &["DELETE FROM t", "TRUNCATE a", "BEGIN; INSERT INTO a VALUES (1); ROLLBACK"]).await;
        assert_eq!(due(&mut listener), [""; 0]);
        all(&mut listener, &["INSERT INTO a VALUES (7)"]).await;
        assert_eq!(due(&mut listener), ["a"]);
        engine.shutdown().await;
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn added_partitions_count_and_dropped_topics_are_told_once() {
        let engine = engine().await;
        let (mut listener, mut writer) = (session(&engine), session(&engine));
        all(&mut listener, &["LISTEN b"]).await;
        all(&mut writer, &["ALTER STREAM b SET (partitions = 8)"]).await;
        assert_eq!(due(&mut listener), [""; 0]);
        for v in 0..8 {
            all(&mut writer, &[&format!("INSERT INTO b VALUES ({v})")]).await;
            assert_eq!(next(&mut listener).await, ["b"], "{v}");
        }
        let used = run(&mut writer, "SELECT count(DISTINCT rowpartition) > 1 FROM b").await.unwrap();
        assert_eq!(used, ["true"]);
        all(&mut writer, &["ALTER STREAM b RENAME TO c", "INSERT INTO c VALUES (1)"]).await;
        assert_eq!(next(&mut listener).await, ["b"]);
        all(&mut writer, &["DROP STREAM c", "CREATE STREAM b (v int)", "INSERT INTO b VALUES (1)"]).await;
        assert_eq!(next(&mut listener).await, ["b"]);
        assert!(!listener.is_listening());
        all(&mut writer, &["INSERT INTO b VALUES (1)"]).await;
        assert_eq!(due(&mut listener), [""; 0]);
        // A channel may become another topic's.
        all(&mut listener, &["LISTEN b"]).await;
        all(&mut writer, &["DROP STREAM b", "CREATE STREAM b (v int)"]).await;
        all(&mut listener, &["LISTEN b"]).await;
        assert_eq!(due(&mut listener), [""; 0]);
        all(&mut writer, &["INSERT INTO b VALUES (1)"]).await;
        assert_eq!(next(&mut listener).await, ["b"]);
        engine.shutdown().await;
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_block_listens_from_its_commit_on() {
        let engine = engine().await;
        let (mut listener, mut writer) = (session(&engine), session(&engine));
        all(&mut listener, &["BEGIN", "LISTEN a"]).await;
        all(&mut writer, &["INSERT INTO a VALUES (1)"]).await;
        assert!(!listener.is_listening());
        all(&mut listener, &["ROLLBACK", "BEGIN", "LISTEN a", "COMMIT"]).await;
        assert_eq!(due(&mut listener), [""; 0]);
        all(&mut writer, &["INSERT INTO a VALUES (2)"]).await;
        assert_eq!(next(&mut listener).await, ["a"]);
        // Savepoints; a failed block is rolled back, whatever its end says.
        let block = [
            "BEGIN",
            "SAVEPOINT first",
            "LISTEN b",
            "ROLLBACK TO first",
            "LISTEN t",
            "SAVEPOINT second",
            "UNLISTEN a",
            "SAVEPOINT third",
            "UNLISTEN *",
            "ROLLBACK TO third",
            "ROLLBACK TO second",
            "RELEASE second",
            "COMMIT",
        ];
        all(&mut listener, &block).await;
        all(&mut writer, &["INSERT INTO a VALUES (3)", "INSERT INTO b VALUES (3)", "INSERT INTO t VALUES (3)"]).await;
        assert_eq!(next(&mut listener).await, ["a", "t"]);
        all(&mut listener, &["BEGIN", "UNLISTEN *"]).await;
        assert!(run(&mut listener, "SELECT nonsense").await.is_err());
        all(&mut listener, &["COMMIT", "BEGIN", "UNLISTEN t", "COMMIT"]).await;
        all(&mut writer, &["INSERT INTO a VALUES (4)", "INSERT INTO t VALUES (4)"]).await;
        assert_eq!(next(&mut listener).await, ["a"]);
        // Several statements in one text are such a block too.
        for (is_ok, sql, channels) in [(false, "LISTEN b", &["a"][..]), (true, "LISTEN b", &["a", "b"])] {
            listener.begin_implicit();
            all(&mut listener, &[sql]).await;
            listener.end_implicit(is_ok).await.unwrap();
            all(&mut writer, &["INSERT INTO a VALUES (5)", "INSERT INTO b VALUES (5)"]).await;
            assert_eq!(next(&mut listener).await, channels);
        }
        engine.shutdown().await;
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn unlisten_and_discard_end_it_with_what_waits() {
        let engine = engine().await;
        let (mut listener, mut writer) = (session(&engine), session(&engine));
        for end in ["UNLISTEN *", "DISCARD ALL", "UNLISTEN a; UNLISTEN nosuch; UNLISTEN b"] {
            all(&mut listener, &["LISTEN a", "LISTEN b"]).await;
            all(&mut writer, &["INSERT INTO a VALUES (1)"]).await;
            all(&mut listener, &[end]).await;
            assert!(!listener.is_listening(), "{end}");
            all(&mut writer, &["INSERT INTO b VALUES (1)"]).await;
            assert_eq!(due(&mut listener), [""; 0], "{end}");
            assert!(listener.notified().now_or_never().is_none(), "{end}");
        }
        all(&mut listener, &["LISTEN a", "LISTEN b", "UNLISTEN a"]).await;
        all(&mut writer, &["INSERT INTO a VALUES (1)", "INSERT INTO b VALUES (1)"]).await;
        assert_eq!(next(&mut listener).await, ["b"]);
        engine.shutdown().await;
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn only_streams_and_tables_are_listened_to() {
        let engine = engine().await;
        let mut session = session(&engine);
        for (sql, code, position) in
            [("LISTEN nosuch", "42P01", 8), ("LISTEN seen", "42809", 8), ("LISTEN millstream.topics", "42501", 8)]
        {
            let error = run(&mut session, sql).await.unwrap_err();
            assert_eq!((error.sqlstate.code(), error.position), (code, Some(position)), "{sql}");
        }
        let error = run(&mut session, "NOTIFY a").await.unwrap_err();
        assert!(error.sqlstate.code() == "0A000" && error.hint.is_some_and(|hint| hint.contains("INSERT")));
        engine.shutdown().await;
    }

    fn channel(number: usize) -> Ident {
        Ident { name: Name::new(format!("c{number}")).unwrap(), position: Position::UNKNOWN }
    }

    #[test]
    fn a_session_listens_to_so_many_topics_and_a_block_says_so_much() {
        let none = || Arc::new(Partitions::new(ShardId::new(1), EntryIndex::default()));
        let listen = |number: usize| Step::Listen(channel(number).name, none(), TopicId::new(number as u64));
        let mut listening = Listening::default();
        listening.apply((0..LISTEN_TOPICS_MAX - 2).map(listen).collect());
        for number in LISTEN_TOPICS_MAX - 2..LISTEN_TOPICS_MAX {
            listening.check_limit(&channel(number)).unwrap();
            listening.keep(listen(number)).unwrap();
        }
        let error = listening.check_limit(&channel(LISTEN_TOPICS_MAX)).unwrap_err();
        assert_eq!(error.sqlstate.code(), "53400");
        listening.check_limit(&channel(0)).unwrap();
        listening.keep(Step::Unlisten(channel(5).name)).unwrap();
        listening.check_limit(&channel(LISTEN_TOPICS_MAX)).unwrap();
        listening.keep(listen(LISTEN_TOPICS_MAX)).unwrap();
        assert!(listening.check_limit(&channel(LISTEN_TOPICS_MAX + 1)).is_err());
        listening.keep(Step::UnlistenAll).unwrap();
        listening.check_limit(&channel(LISTEN_TOPICS_MAX + 1)).unwrap();
        for _ in listening.steps.len()..LISTEN_STEPS_MAX {
            listening.keep(Step::UnlistenAll).unwrap();
        }
        assert_eq!(listening.keep(Step::UnlistenAll).unwrap_err().sqlstate.code(), "53400");
        let steps = listening.end_transaction();
        listening.apply(steps);
        assert!(!listening.is_any());
    }
}
