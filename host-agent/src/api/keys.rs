//! `/keys…`, and a VM's new identity.
//!
//! Passphrases come in bodies and are wiped as far as they are ours: what hyper and serde_json keep of a body while they
//! read it is freed and not wiped.

use std::sync::Arc;

use axum::{
    Json,
    extract::{Path, State, rejection::JsonRejection, rejection::PathRejection},
    http::StatusCode,
};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use utoipa_axum::{router::OpenApiRouter, routes};
use wire::VmName;

use super::{Answer, OfAgent, object::Object, problem::Failed};
use crate::{
    agent::Agent,
    hex,
    keys::{
        HostRequest, KeysError, SetUp, UnlockWith,
        report::{KeyBranch, KeyTree, KeysStatus, NewGrant, Signed},
    },
    status::Problem,
    store::{StoreError, UnlockError},
};

type Body<T> = Result<Json<Object<T>>, JsonRejection>;

/// What there is under `/keys`.
pub(super) fn routes() -> OpenApiRouter<Arc<Agent>> {
    OpenApiRouter::new()
        .routes(routes!(tree))
        .routes(routes!(host))
        .routes(routes!(set_up))
        .routes(routes!(renew))
        .routes(routes!(root))
        .routes(routes!(lock))
        .routes(routes!(unlocked_by))
        .routes(routes!(unlock))
        .routes(routes!(change_unlock))
        .routes(routes!(revoke))
        .routes(routes!(grant))
        .routes(routes!(sign))
        .routes(routes!(new_identity))
}

/// The status of an answer that says this.
pub(super) fn status_of(error: &KeysError) -> StatusCode {
    match error {
        KeysError::Locked => StatusCode::LOCKED,
        KeysError::NoVm(_) | KeysError::NoKey(_) | KeysError::NoRoot => StatusCode::NOT_FOUND,
        KeysError::Refused(_) => StatusCode::FORBIDDEN,
        KeysError::BadGrant(_) | KeysError::Name(_) | KeysError::Limits(_) => StatusCode::UNPROCESSABLE_ENTITY,
        KeysError::Store(StoreError::Unlock(UnlockError::WrongPassphrase | UnlockError::WrongKey(_))) => {
            StatusCode::FORBIDDEN
        }
        KeysError::Store(StoreError::Unlock(_)) => StatusCode::UNPROCESSABLE_ENTITY,
        KeysError::Store(StoreError::Full { .. }) => StatusCode::INSUFFICIENT_STORAGE,
        KeysError::Store(StoreError::Io { .. } | StoreError::Database { .. }) => StatusCode::INTERNAL_SERVER_ERROR,
        _ => StatusCode::CONFLICT,
    }
}

/// The tree of keys, and how each is.
#[utoipa::path(get, path = "/keys", responses((status = 200, body = KeyTree)))]
async fn tree(State(agent): OfAgent) -> Answer<Json<KeyTree>> {
    Ok(Json(agent.with_keys(|keys| Ok(keys.tree())).await?))
}

/// Makes a key for this host, for the root to grant to.
#[utoipa::path(post, path = "/keys/host", responses(
    (status = 200, body = HostRequest),
    (status = 409, description = "The agent keeps no keys", body = Problem),
))]
async fn host(State(agent): OfAgent) -> Answer<Json<HostRequest>> {
    Ok(Json(agent.with_keys(|keys| keys.host_request()).await?))
}

/// Where a store that was there went.
#[derive(Serialize, Deserialize, ToSchema)]
pub(crate) struct SetUpDone {
    /// Its directory now; none where there was none.
    pub(crate) aside: Option<String>,
    /// How the keys are.
    pub(crate) keys: KeysStatus,
}

/// Makes the key store.
#[utoipa::path(post, path = "/keys/setup", request_body = SetUp, responses(
    (status = 200, body = SetUpDone),
    (status = 409, description = "There is a store or a sealed root already, or the key was not asked for", body = Problem),
    (status = 422, description = "The grant or the sealed root is none", body = Problem),
    (status = 507, description = "The disk is full", body = Problem),
))]
async fn set_up(State(agent): OfAgent, body: Body<SetUp>) -> Answer<Json<SetUpDone>> {
    let Json(Object(given)) = body?;
    // A task of its own: a client that hangs up must not leave half of it done.
    let task = tokio::spawn(async move {
        let aside = agent.set_up_keys(given).await?;
        Ok::<_, Failed>(SetUpDone { aside, keys: agent.with_keys(|keys| Ok(keys.status())).await? })
    });
    Ok(Json(task.await??))
}

#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct Renewal {
    /// The root's grant for the host's new key, in hexadecimal digits.
    #[schema(max_length = 8192)]
    grant: String,
    /// Whether the agent's time goes back to the wall clock, which had jumped forward.
    #[serde(default)]
    set_clock: bool,
}

/// Takes a new grant of the root for this host.
#[utoipa::path(post, path = "/keys/renew", request_body = Renewal, responses(
    (status = 200, body = KeysStatus),
    (status = 409, description = "No keys are kept, or the key was not asked for", body = Problem),
    (status = 422, description = "The grant is none", body = Problem),
    (status = 423, description = "The store is locked", body = Problem),
))]
async fn renew(State(agent): OfAgent, body: Body<Renewal>) -> Answer<Json<KeysStatus>> {
    let Json(Object(Renewal { grant, set_clock })) = body?;
    agent.with_keys(move |keys| keys.renew(&grant, set_clock)).await?;
    keys_status(&agent).await
}

/// A sealed root.
#[derive(Serialize, Deserialize, ToSchema)]
pub(crate) struct SealedRoot {
    /// As text, which only its passphrase opens.
    pub(crate) sealed: String,
}

/// The root, sealed, where it is kept here.
#[utoipa::path(get, path = "/keys/root", responses(
    (status = 200, body = SealedRoot),
    (status = 404, description = "It is kept somewhere else", body = Problem),
))]
async fn root(State(agent): OfAgent) -> Answer<Json<SealedRoot>> {
    let sealed = agent.with_keys(|keys| keys.sealed_root()).await?;
    Ok(Json(SealedRoot { sealed }))
}

/// Locks the store.
#[utoipa::path(post, path = "/keys/lock", responses(
    (status = 200, body = KeysStatus),
    (status = 409, description = "No keys are kept", body = Problem),
))]
async fn lock(State(agent): OfAgent) -> Answer<Json<KeysStatus>> {
    agent.with_keys(|keys| keys.lock()).await?;
    keys_status(&agent).await
}

/// What unlocks the store.
#[derive(Serialize, Deserialize, ToSchema)]
pub(crate) struct UnlockedBy {
    /// `a passphrase`, `a key file` or `a systemd credential`.
    pub(crate) by: String,
    /// Where the key file is.
    pub(crate) key_file: Option<String>,
}

/// What unlocks the store.
#[utoipa::path(get, path = "/keys/unlock", responses(
    (status = 200, body = UnlockedBy),
    (status = 409, description = "No keys are kept", body = Problem),
))]
async fn unlocked_by(State(agent): OfAgent) -> Answer<Json<UnlockedBy>> {
    let by = agent.with_keys(|keys| keys.unlocked_by()).await?;
    let key_file = match &by {
        crate::store::key_file::UnlockedBy::KeyFile { path } => Some(path.display().to_string()),
        _ => None,
    };
    Ok(Json(UnlockedBy { by: by.words().into(), key_file }))
}

#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct Unlocking {
    /// What unlocks it.
    with: UnlockWith,
}

/// Unlocks the store.
#[utoipa::path(post, path = "/keys/unlock", request_body = Unlocking, responses(
    (status = 200, body = KeysStatus),
    (status = 403, description = "This does not unlock it", body = Problem),
    (status = 409, description = "No keys are kept, or the store is damaged", body = Problem),
))]
async fn unlock(State(agent): OfAgent, body: Body<Unlocking>) -> Answer<Json<KeysStatus>> {
    let Json(Object(Unlocking { with })) = body?;
    agent.unlock_keys(with.to_unlock()).await?;
    keys_status(&agent).await
}

#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct UnlockChange {
    /// What unlocks it now.
    old: UnlockWith,
    /// What is to unlock it.
    new: UnlockWith,
}

/// Replaces what unlocks the store.
#[utoipa::path(put, path = "/keys/unlock", request_body = UnlockChange, responses(
    (status = 200, body = KeysStatus),
    (status = 403, description = "The old one does not unlock it", body = Problem),
    (status = 409, description = "No keys are kept, or the store is damaged", body = Problem),
))]
async fn change_unlock(State(agent): OfAgent, body: Body<UnlockChange>) -> Answer<Json<KeysStatus>> {
    let Json(Object(UnlockChange { old, new })) = body?;
    agent.with_keys(move |keys| keys.change_unlock(&old.to_unlock(), &new.to_unlock())).await?;
    keys_status(&agent).await
}

#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct Revocation {
    /// The name of a key as in the tree, or a revocation identifier.
    #[schema(max_length = 256)]
    what: String,
}

/// How many grants were revoked.
#[derive(Serialize, Deserialize, ToSchema)]
pub(crate) struct Revoked {
    /// Their number.
    pub(crate) revoked: usize,
}

/// Revokes a key's grants, or one grant.
#[utoipa::path(post, path = "/keys/revoke", request_body = Revocation, responses(
    (status = 200, body = Revoked),
    (status = 404, description = "Nothing has this name", body = Problem),
    (status = 423, description = "The store is locked", body = Problem),
))]
async fn revoke(State(agent): OfAgent, body: Body<Revocation>) -> Answer<Json<Revoked>> {
    let Json(Object(Revocation { what })) = body?;
    let revoked = agent.with_keys(move |keys| keys.revoke(&what)).await?;
    Ok(Json(Revoked { revoked }))
}

/// Gives a purpose of a VM a key, or its key a new grant.
#[utoipa::path(post, path = "/keys/grants", request_body = NewGrant, responses(
    (status = 200, body = KeyBranch),
    (status = 404, description = "There is no such VM", body = Problem),
    (status = 422, description = "The limits make no sense", body = Problem),
    (status = 423, description = "The store is locked", body = Problem),
))]
async fn grant(State(agent): OfAgent, body: Body<NewGrant>) -> Answer<Json<KeyBranch>> {
    let Json(Object(new)) = body?;
    Ok(Json(agent.with_keys(move |keys| keys.grant(new)).await?))
}

#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct ToSign {
    /// Whose key.
    #[schema(value_type = String, max_length = 63)]
    vm: VmName,
    /// Which of its signing keys; the VM's name where none is given.
    #[serde(default)]
    name: Option<String>,
    /// The file's SHA-256, in hexadecimal digits.
    #[schema(pattern = "^[0-9a-fA-F]{64}$")]
    sha256: String,
}

/// Signs a file's SHA-256.
#[utoipa::path(post, path = "/keys/sign", request_body = ToSign, responses(
    (status = 200, body = Signed),
    (status = 403, description = "A grant does not permit it", body = Problem),
    (status = 404, description = "There is no such VM", body = Problem),
    (status = 422, description = "This is no SHA-256", body = Problem),
    (status = 423, description = "The store is locked", body = Problem),
))]
async fn sign(State(agent): OfAgent, body: Body<ToSign>) -> Answer<Json<Signed>> {
    let Json(Object(ToSign { vm, name, sha256 })) = body?;
    let no_digest = || Failed::new(StatusCode::UNPROCESSABLE_ENTITY, "a SHA-256 is written with 64 hexadecimal digits");
    let sha256 = hex::decode_array(&sha256).ok_or_else(no_digest)?;
    Ok(Json(agent.with_keys(move |keys| keys.sign_file(&vm, name.as_deref(), &sha256)).await?))
}

/// Gives a VM a fresh key; the one it had is revoked at once, and those of its services with it.
#[utoipa::path(post, path = "/vms/{name}/new-identity", params(("name" = String, Path)), responses(
    (status = 200, body = KeyBranch),
    (status = 404, description = "There is no such VM", body = Problem),
    (status = 423, description = "The store is locked", body = Problem),
))]
async fn new_identity(State(agent): OfAgent, name: Result<Path<VmName>, PathRejection>) -> Answer<Json<KeyBranch>> {
    let Path(name) = name?;
    Ok(Json(tokio::spawn(async move { agent.new_identity(&name).await }).await??))
}

async fn keys_status(agent: &Agent) -> Answer<Json<KeysStatus>> {
    Ok(Json(agent.with_keys(|keys| Ok(keys.status())).await?))
}
