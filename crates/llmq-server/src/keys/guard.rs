//! Who asks, and whether they may: the one place where routes find that out.

use std::marker::PhantomData;
use std::str;

use axum::extract::FromRequestParts;
use axum::response::IntoResponse;
use http::HeaderMap;
use http::request::Parts;

use super::create::is_name;
use super::{AuthError, Caller, Forbidden, KeyRing, KeyScope};
use crate::Problem;

/// Whose a request is to be, if its caller's own tenant is not meant.
const TENANT: &str = "x-llmq-tenant";

/// Why a request is not let in.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Denied {
    /// Nobody knows who asks: 401.
    #[error(transparent)]
    Unauthenticated(#[from] AuthError),
    /// They may not: 403.
    #[error(transparent)]
    Forbidden(#[from] Forbidden),
    /// The tenant that it names cannot be one: 400.
    #[error("X-LLMQ-Tenant: it must have 1 to 100 characters, none of them a control character")]
    NoTenant,
}

/// The caller, who has at least one of these scopes.
pub(crate) fn caller(
    keys: &KeyRing,
    headers: &HeaderMap,
    scopes: &[KeyScope],
) -> Result<Caller, Denied> {
    let caller = keys.authenticate(headers)?;
    let mut refused = None;
    for scope in scopes {
        match caller.may(*scope) {
            Ok(()) => return Ok(caller),
            Err(error) => refused = refused.or(Some(error)),
        }
    }
    match refused {
        Some(error) => Err(error.into()),
        None => Ok(caller),
    }
}

/// Whose a caller's request is: as it names in its headers, or its own.
pub(crate) fn tenant<'a>(caller: &'a Caller, headers: &'a HeaderMap) -> Result<&'a str, Denied> {
    let asked = match headers.get(TENANT) {
        None => None,
        Some(value) => {
            let name = str::from_utf8(value.as_bytes()).map_err(|_| Denied::NoTenant)?;
            let name = name.trim();
            Some(name)
                .filter(|name| is_name(name))
                .ok_or(Denied::NoTenant)?
                .into()
        }
    };
    Ok(caller.tenant_for(asked)?)
}

/// What a route needs of its caller.
pub(crate) trait Need {
    /// One of these.
    const SCOPES: &'static [KeyScope];
}

/// To hand in work, and to end it.
#[derive(Debug)]
pub(crate) struct HandIn;

/// To see what is there.
#[derive(Debug)]
pub(crate) struct Look;

/// To change how the gateway works.
#[derive(Debug)]
pub(crate) struct Manage;

impl Need for HandIn {
    const SCOPES: &'static [KeyScope] = &[KeyScope::Call];
}

impl Need for Look {
    const SCOPES: &'static [KeyScope] = &[KeyScope::Read, KeyScope::Call];
}

impl Need for Manage {
    const SCOPES: &'static [KeyScope] = &[KeyScope::Manage];
}

/// The caller of a route, who may do what it needs; others get an `R`. A route that takes a body
/// names this before it, so that nothing is read of those who may not.
pub(crate) struct May<N, R = Problem>(pub(crate) Caller, pub(crate) PhantomData<fn() -> (N, R)>);

/// Where the keys are.
pub(crate) trait HasKeys {
    fn key_ring(&self) -> &KeyRing;
}

impl<S, N, R> FromRequestParts<S> for May<N, R>
where
    S: HasKeys + Sync,
    N: Need,
    R: From<Denied> + IntoResponse,
{
    type Rejection = R;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, R> {
        let caller = caller(state.key_ring(), &parts.headers, N::SCOPES)?;
        Ok(Self(caller, PhantomData))
    }
}
