//! Modules: uploading, finding and deleting them. Their bytes and records are in the engine; the module host admits them.

use bytes::Bytes;
use millrace_engine::{
    CommitError, Entry, EntryKind, EntryWrite, Expectation, ReadError, Transaction,
};
use millrace_model::{
    Advice, Advised, Code, Digest, Durability, GuestLimits, Revision, Route, Timestamp,
};
use serde::{Deserialize, Serialize};

use crate::catalogue::admissions::Admitting;
use crate::catalogue::deciding::decision_errors;
use crate::catalogue::entries::entry;
use crate::catalogue::handle::Catalogue;
use crate::catalogue::signatures::{ModuleSignature, SignatureError, digest_of};
use crate::catalogue::tags::{MODULE_TAGS_MAX, name_of, parts_of};
use crate::ground::standing::Forbidden;
use crate::ground::verbs::Verb;
use crate::handler::{AdmitError, ModuleFacts, Uploader};

/// Minimum number of digits that may abbreviate a digest.
const DIGEST_PREFIX_DIGITS_MIN: usize = 6;

/// The record of an uploaded module.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Module {
    /// The result of admission.
    pub facts: ModuleFacts,
    /// The first `name@version` given to it, if any.
    pub tag: Option<String>,
    /// Further tags: for bytes that did not change from one version to the next, or that have two names.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub more_tags: Vec<String>,
    /// When it was first uploaded.
    pub uploaded_at: Timestamp,
    /// Its signature, if it was uploaded with one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signature: Option<ModuleSignature>,
}

/// An upload.
#[derive(Clone, Debug, Default)]
pub struct Upload {
    /// The component.
    pub bytes: Bytes,
    /// A tag for it.
    pub tag: Option<String>,
    /// The digest that the bytes must have.
    pub digest: Option<Digest>,
    /// The text of its signature's file.
    pub signature: Option<String>,
    /// Who uploads: uploaders take turns to compile.
    pub uploader: Uploader,
}

/// Why a module was not uploaded, found or deleted.
#[derive(Debug, thiserror::Error)]
pub enum ModuleError {
    /// The caller may not do it.
    #[error(transparent)]
    Forbidden(#[from] Forbidden),
    /// Admission refused it; nothing was stored.
    #[error(transparent)]
    Admit(#[from] AdmitError),
    /// Its signature is not accepted.
    #[error(transparent)]
    Signature(#[from] SignatureError),
    /// The bytes are not those that were announced.
    #[error("the bytes that arrived have the digest {}, not {wanted}", .found.map_or_else(String::new, |digest| digest.to_string()))]
    OtherBytes {
        /// The digest that they should have.
        wanted: Digest,
        /// The digest that they have; `None` if the host stops.
        found: Option<Digest>,
    },
    /// The bytes of a module cannot be read.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// There is no module with this digest or tag.
    #[error("module {0} does not exist; `module list` shows the modules that do")]
    Unknown(String),
    /// Not `name@version`.
    #[error(
        "{0:?} is not a tag; write name@version with letters, digits, '.', '_', '-' (at most 128 characters)"
    )]
    Tag(String),
    /// The tag belongs to another module.
    #[error("tag {tag} already names module {digest}; choose another version")]
    TagTaken {
        /// The tag.
        tag: String,
        /// That module.
        digest: Digest,
    },
    /// No module has this tag.
    #[error("no module has the tag {0}; `millrace module list` shows the tags that there are")]
    UnknownTag(String),
    /// Versions must rise, and this one has no order.
    #[error(
        "{0} has no semantic version, which this host demands (setting versions = \"monotonic\"); write name@1.2.3"
    )]
    NotSemantic(String),
    /// Versions must rise, and this one does not.
    #[error(
        "{tag} is not newer than {newest}, the newest version so far, and versions may only rise on this host (setting versions = \"monotonic\")"
    )]
    NotNewer {
        /// The tag.
        tag: String,
        /// The newest tag that the name has or had.
        newest: String,
    },
    /// The module has the maximum number of tags.
    #[error(
        "module {0} already has {MODULE_TAGS_MAX} tags, the maximum; use one of those, or take one back"
    )]
    TooManyTags(Digest),
    /// Processors, topics or routes use it.
    #[error("module {digest} is used by {}; deploy another module there or delete them first", .by.join(", "))]
    InUse {
        /// The module.
        digest: Digest,
        /// `processor NAME revision N`, `topic NAME` or `route PATH`.
        by: Vec<String>,
    },
    /// The engine refused the commit.
    #[error(transparent)]
    Commit(#[from] CommitError),
}

decision_errors! {
    ModuleError: ModuleError::Commit;
}

impl Advised for ModuleError {
    fn advice(&self) -> Advice {
        match self {
            Self::Forbidden(error) => error.advice(),
            Self::Admit(error) => error.advice(),
            Self::Signature(error) => error.advice(),
            Self::OtherBytes { .. } => Code::DigestMismatch.advice(),
            Self::Read(error) => error.advice(),
            Self::Unknown(_) | Self::UnknownTag(_) => Code::UnknownModule.advice(),
            Self::Tag(_) | Self::NotSemantic(_) => Code::BadTag.advice(),
            Self::NotNewer { .. } => Code::VersionNotNewer.advice(),
            Self::TagTaken { .. } => Code::TagTaken.advice(),
            Self::TooManyTags(_) => Code::TooManyTags.advice(),
            Self::InUse { .. } => Code::InUse.hint("stop using it first"),
            Self::Commit(error) => error.advice(),
        }
    }
}

/// An upload that is being admitted. Dropped, it ends without a result.
pub struct Uploading {
    catalogue: Catalogue,
    admitting: Admitting,
    bytes: Bytes,
    tag: Option<String>,
    signature: Option<ModuleSignature>,
    uploader: Uploader,
}

impl Uploading {
    /// The SHA-256 of the bytes.
    #[must_use]
    pub fn digest(&self) -> Digest {
        self.admitting.digest
    }

    /// Waits until the module is compiled and tried, and stores it. A refusal is remembered.
    ///
    /// # Errors
    /// [`ModuleError`]; nothing was stored.
    pub async fn finish(self) -> Result<Module, ModuleError> {
        let Self {
            catalogue,
            admitting,
            bytes,
            tag,
            signature,
            uploader,
        } = self;
        let stored = async {
            let admitted = catalogue.inner.modules.admit(bytes.clone(), uploader);
            let facts = admitted.await?;
            let keep = || catalogue.keep_module(&facts, &bytes, tag.as_ref(), signature.as_ref());
            catalogue.decide(keep).await
        };
        let stored: Result<Module, ModuleError> = stored.await;
        stored.inspect_err(|error| admitting.refused(error))
    }
}

/// Whether a reference is a digest or the beginning of it.
pub(super) fn abbreviates(reference: &str, digest: Digest) -> bool {
    let prefix = reference.to_ascii_lowercase();
    prefix.len() >= DIGEST_PREFIX_DIGITS_MIN && digest.to_string().starts_with(&prefix)
}

impl Catalogue {
    /// Admits a module and stores it. Uploading the same bytes again returns the existing module; a further tag is added to it, and no
    /// tag moves to another module.
    ///
    /// # Errors
    /// [`ModuleError`]; nothing was stored.
    pub async fn upload_module(
        &self,
        bytes: Bytes,
        tag: Option<String>,
    ) -> Result<Module, ModuleError> {
        self.upload_module_of(Upload {
            bytes,
            tag,
            ..Upload::default()
        })
        .await
    }

    /// Like [`upload_module`](Self::upload_module), for a named uploader, and with a signature.
    ///
    /// # Errors
    /// [`ModuleError`]; nothing was stored.
    pub async fn upload_module_of(&self, upload: Upload) -> Result<Module, ModuleError> {
        self.begin_upload(upload).await?.finish().await
    }

    /// Checks what takes no time, and begins to admit a module: from now on [`admission`](Self::admission) knows it.
    ///
    /// # Errors
    /// [`ModuleError`]; nothing was stored.
    pub async fn begin_upload(&self, upload: Upload) -> Result<Uploading, ModuleError> {
        self.caller.may(
            Verb::UploadModule,
            upload.tag.as_deref().map_or("", name_of),
        )?;
        let Upload {
            bytes,
            tag,
            digest,
            signature,
            uploader,
        } = upload;
        if let Some(tag) = tag.as_ref().filter(|tag| parts_of(tag).is_none()) {
            return Err(ModuleError::Tag(tag.clone()));
        }
        let found = digest_of(&bytes).await;
        if let Some(wanted) = digest.filter(|wanted| found != Some(*wanted)) {
            return Err(ModuleError::OtherBytes { wanted, found });
        }
        let found = found.ok_or(AdmitError::Stopping)?;
        // Before it is compiled: strangers' bytes should cost as little as possible.
        let signature = self.verify_upload(&bytes, signature).await?;
        if let (Some(signature), Some(tag)) = (&signature, &tag) {
            signature.check_tag(tag)?;
        }
        if let Some(tag) = &tag {
            self.check_tag(tag, found)?;
        }
        let admitting = Admitting::begin(self, found, tag.as_ref(), bytes.len() as u64);
        Ok(Uploading {
            catalogue: self.clone(),
            admitting,
            bytes,
            tag,
            signature,
            uploader,
        })
    }

    async fn keep_module(
        &self,
        facts: &ModuleFacts,
        bytes: &Bytes,
        tag: Option<&String>,
        signature: Option<&ModuleSignature>,
    ) -> Result<Module, ModuleError> {
        let digest = facts.digest;
        let engine = &self.inner.engine;
        let expects = vec![self.modules_as_now()];
        let as_now = self.module_as_now(digest);
        let tag = tag.map(String::as_str);
        if let Some(tag) = tag {
            self.check_tag(tag, digest)?;
        }
        let known = self.module_of(digest);
        let is_new = known.is_none();
        if let Some(known) = &known
            && tag.is_none_or(|tag| known.has_tag(tag))
            && signature.is_none_or(|signature| known.signature.as_ref() == Some(signature))
        {
            // The stored bytes may be damaged; if not, this writes nothing.
            engine.put_module(digest, bytes.clone()).await?;
            // If it was deleted meanwhile, it is uploaded again.
            let is_there = Transaction {
                expects: vec![as_now],
                durability: Some(Durability::None),
                ..Transaction::default()
            };
            engine.commit(is_there).await?;
            return Ok(known.clone());
        }
        let mut module = known.unwrap_or_else(|| Module {
            facts: facts.clone(),
            tag: None,
            more_tags: Vec::new(),
            uploaded_at: self.inner.clock.wall(),
            signature: None,
        });
        let before = std::mem::replace(&mut module.facts, facts.clone());
        if facts.compile_ms == 0 {
            // Its code was there already: what its compile took is known from then.
            module.facts.compile_ms = before.compile_ms;
            module.facts.waited_ms = before.waited_ms;
        }
        if let Some(signature) = signature {
            module.signature = Some(signature.clone());
        }
        if let Some(tag) = tag.filter(|tag| !module.has_tag(tag)) {
            module.add_tag(tag)?;
        }
        // The bytes first: an entry must not exist without them.
        engine.put_module(digest, bytes.clone()).await?;
        self.write_module(&module, tag, expects).await?;
        // An earlier deletion may have removed these bytes after its entry, before this entry existed.
        if is_new && !matches!(engine.module(digest).await, Ok(Some(_))) {
            engine.put_module(digest, bytes.clone()).await?;
        }
        Ok(module)
    }

    /// The limits of modules on this host.
    #[must_use]
    pub fn guest_limits(&self) -> GuestLimits {
        self.inner.modules.limits()
    }

    /// Writes a module's record, and remembers the version of a tag that was given or taken back.
    pub(super) async fn write_module(
        &self,
        module: &Module,
        tag: Option<&str>,
        expects: Vec<Expectation>,
    ) -> Result<(), CommitError> {
        let key = module.facts.digest.to_string();
        let record = entry(EntryKind::Module, key, Some(module));
        self.write_record(record, tag, expects).await
    }

    async fn write_record(
        &self,
        record: EntryWrite,
        tags: impl IntoIterator<Item = &str>,
        expects: Vec<Expectation>,
    ) -> Result<(), CommitError> {
        let mut entries = self.newest_entries(tags);
        entries.push(record);
        let transaction = Transaction {
            entries,
            expects,
            durability: Some(Durability::Durable),
            ..Transaction::default()
        };
        self.inner.engine.commit(transaction).await?;
        Ok(())
    }

    /// All modules, by digest.
    #[must_use]
    pub fn modules(&self) -> Vec<Module> {
        let mut modules = self.all_modules();
        modules.retain(|module| self.sees_module(module));
        modules
    }

    /// All modules, whoever asks.
    pub(crate) fn all_modules(&self) -> Vec<Module> {
        let entries = self.inner.engine.entries(EntryKind::Module);
        let module = |(key, entry): (String, Entry)| match serde_json::from_slice(&entry.value) {
            Ok(module) => Some(module),
            Err(error) => {
                tracing::error!(key, %error, "the catalogue's entry of a module cannot be read");
                None
            }
        };
        entries.into_iter().filter_map(module).collect()
    }

    /// A module by digest, by an unambiguous prefix of it (at least 6 digits) or by tag.
    #[must_use]
    pub fn find_module(&self, reference: &str) -> Option<Module> {
        let modules = self.modules();
        if let Some(tagged) = modules.iter().find(|module| module.has_tag(reference)) {
            return Some(tagged.clone());
        }
        let mut found = modules
            .into_iter()
            .filter(|module| abbreviates(reference, module.facts.digest));
        let first = found.next()?;
        found.next().is_none().then_some(first)
    }

    pub(crate) fn module_of(&self, digest: Digest) -> Option<Module> {
        let key = digest.to_string();
        let entry = self.inner.engine.entry(EntryKind::Module, &key)?;
        serde_json::from_slice(&entry.value).ok()
    }

    /// The bytes of a module.
    ///
    /// # Errors
    /// [`ModuleError`].
    pub async fn module_bytes(&self, digest: Digest) -> Result<Bytes, ModuleError> {
        let may = |name: String| self.caller.sees(Verb::ReadModule, &name);
        let is_seen = self
            .module_of(digest)
            .is_some_and(|module| module.names().any(may));
        let bytes = match is_seen {
            true => self.inner.engine.module(digest).await?,
            false => None,
        };
        bytes.ok_or_else(|| ModuleError::Unknown(digest.to_string()))
    }

    /// Whether the caller may see a module, by one of its names.
    fn sees_module(&self, module: &Module) -> bool {
        module
            .names()
            .any(|name| self.caller.sees(Verb::SeeModule, &name))
    }

    /// Whether the caller may do this with a module under all its names.
    pub(super) fn may_with(&self, verb: Verb, digest: Digest) -> Result<(), ModuleError> {
        let unknown = || ModuleError::Unknown(digest.to_string());
        let module = self
            .module_of(digest)
            .filter(|module| self.sees_module(module));
        for name in module.ok_or_else(unknown)?.names() {
            self.caller.may(verb, &name)?;
        }
        Ok(())
    }

    /// Deletes a module that is not in use.
    ///
    /// # Errors
    /// [`ModuleError`]; it still exists.
    pub async fn delete_module(&self, digest: Digest) -> Result<(), ModuleError> {
        self.may_with(Verb::DeleteModule, digest)?;
        self.decide(|| self.delete_module_now(digest)).await
    }

    async fn delete_module_now(&self, digest: Digest) -> Result<(), ModuleError> {
        let unused = Expectation::NoPartitioner { module: digest };
        let unknown = || ModuleError::Unknown(digest.to_string());
        let module = self.module_of(digest).ok_or_else(unknown)?;
        let kind = EntryKind::Route;
        let version = self.inner.engine.version(kind);
        let same_routes = Expectation::Kind { kind, version };
        let expects = vec![
            self.modules_as_now(),
            self.all_as_known(),
            unused,
            same_routes,
        ];
        let by = self.users_of_module(digest);
        if !by.is_empty() {
            return Err(ModuleError::InUse { digest, by });
        }
        let key = digest.to_string();
        let removed = entry::<Module>(EntryKind::Module, key.clone(), None);
        self.write_record(removed, module.tags(), expects).await?;
        self.inner.modules.forget(digest);
        let no_entry = Expectation::entry(EntryKind::Module, key, None);
        match self
            .inner
            .engine
            .delete_module(digest, vec![no_entry])
            .await
        {
            // It was deleted, and uploaded again since: the bytes belong to the new upload.
            Err(CommitError::Conflict(_)) => Ok(()),
            deleted => Ok(deleted?),
        }
    }

    /// Revisions kept for rollback count too: going back must always work.
    fn users_of_module(&self, digest: Digest) -> Vec<String> {
        let processors = self.inner.processors.read();
        let revisions = processors.values().flat_map(|entry| {
            let uses = move |revision: &&Revision| {
                revision.spec.module == digest || revision.spec.error_handler == Some(digest)
            };
            let name = &entry.processor.name;
            let used = entry.processor.revisions.iter().filter(uses);
            used.map(move |revision| format!("processor {name} revision {}", revision.number))
        });
        let topics = self.topics().into_iter();
        let topics = topics
            .filter(|topic| topic.spec.partitioner == Some(digest))
            .map(|topic| format!("topic {}", topic.spec.name));
        let routes = self.inner.engine.entries(EntryKind::Route).into_iter();
        let routes = routes.flat_map(|(path, entry)| {
            let route: Option<Route> = serde_json::from_slice(&entry.value).ok();
            let revisions = route.map_or_else(Vec::new, |route| route.revisions);
            let used = revisions.into_iter().filter(|r| r.spec.module == digest);
            let names = used.map(|r| format!("route {path} revision {}", r.number));
            names.collect::<Vec<_>>()
        });
        revisions.chain(topics).chain(routes).collect()
    }
}
