//! Web pages and a server without keys. Whoever has no key to show is let in because they are on this
//! machine, and so is every page that a browser on this machine shows. A request must name this machine as
//! its host (else a foreign name was pointed at it: DNS rebinding), and must not come from a page of a
//! foreign origin. From the first key on the key decides, which no foreign page has.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderValue, Uri, header};
use axum::middleware::Next;
use axum::response::Response;

use crate::domain::error_code::ErrorCode;
use crate::http::error::{ApiError, ApiResult};
use crate::http::state::AppState;
use crate::util::excerpt::excerpt;

/// What browsers add to their requests, of which pages cannot change anything.
const SITE: &str = "sec-fetch-site";
const MARKS: [&str; 4] = ["origin", SITE, "sec-fetch-mode", "sec-fetch-dest"];

/// The state of the check.
#[derive(Clone)]
pub(in crate::http) struct WebPages {
    state: AppState,
    /// Origins whose pages may use the API.
    origins: Arc<[HeaderValue]>,
}

/// Marks a request that a browser may have sent to a server without keys. Its body must say that it is
/// JSON where it is read as JSON: a page can send other types to any server without asking it first.
#[derive(Clone, Copy)]
pub(in crate::http) struct BrowserRequest;

impl WebPages {
    /// Lets pages of these origins in, and those of the server itself.
    pub(in crate::http) fn new(state: AppState, origins: &[HeaderValue]) -> Self {
        Self { state, origins: origins.into() }
    }
}

/// Refuses what a foreign page sends, as long as there are no keys.
pub(in crate::http) async fn refuse_foreign_pages(
    State(pages): State<WebPages>,
    mut request: Request,
    next: Next,
) -> ApiResult<Response> {
    let refusal = refusal(request.uri(), request.headers(), &pages.origins);
    let is_marked = MARKS.iter().any(|name| request.headers().contains_key(*name));
    // Programs on this machine send neither, and do not wait for the store.
    if (refusal.is_some() || is_marked) && !pages.state.store.has_api_keys().await? {
        if let Some(refusal) = refusal {
            return Err(refusal);
        }
        request.extensions_mut().insert(BrowserRequest);
    }
    Ok(next.run(request).await)
}

/// Why a server without keys does not answer this request, if it does not.
fn refusal(uri: &Uri, headers: &HeaderMap, origins: &[HeaderValue]) -> Option<ApiError> {
    let denied = |what: String| Some(ApiError::new(ErrorCode::PermissionDenied, what));
    let sent_hosts = headers.get_all(header::HOST).iter();
    // An HTTP/1.0 client may send none; a browser always does.
    let hosts = sent_hosts.map(text).chain(uri.authority().map(|authority| authority.as_str()));
    for host in hosts {
        if !is_this_machine(host) {
            return denied(format!(
                "the request is for the host {:?}, and this server has no API keys: without them it \
                 answers only to localhost, 127.0.0.1 and [::1]. Use one of these names, or create a key \
                 with `hone keys create`",
                excerpt(host)
            ));
        }
    }
    let mut is_of_a_listed_page = false;
    for origin in headers.get_all(header::ORIGIN) {
        is_of_a_listed_page = origins.contains(origin);
        if !is_of_a_listed_page && !is_own_page(text(origin), headers) {
            return denied(format!(
                "the request comes from a page of {:?}, and this server has no API keys: without them no \
                 page of another origin may use it. Start the server with --cors-origin to allow the \
                 page, or create a key with `hone keys create`",
                excerpt(text(origin))
            ));
        }
    }
    let is_cross_site = headers
        .get_all(SITE)
        .iter()
        .any(|site| site.as_bytes().eq_ignore_ascii_case(b"cross-site"));
    if is_cross_site && !is_of_a_listed_page {
        return denied(
            "the request comes from a page of another site, and this server has no API keys: without \
             them it does not answer to one. Enter the address yourself, start the server with \
             --cors-origin to allow the page, or create a key with `hone keys create`"
                .to_owned(),
        );
    }
    None
}

/// A header's text; what is no text is no name either.
fn text(value: &HeaderValue) -> &str {
    value.to_str().unwrap_or("?")
}

/// Whether a host, with or without a port, is a name of this machine that nobody can point elsewhere.
fn is_this_machine(host: &str) -> bool {
    if let Some(rest) = host.strip_prefix('[') {
        let Some((address, port)) = rest.split_once(']') else { return false };
        let is_loopback = address.parse::<Ipv6Addr>().is_ok_and(|address| address.is_loopback());
        return is_loopback && (port.is_empty() || is_port(port.strip_prefix(':')));
    }
    let (name, port) = match host.split_once(':') {
        Some((name, port)) => (name, Some(port)),
        None => (host, None),
    };
    if port.is_some() && !is_port(port) {
        return false;
    }
    let name = name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase();
    name == "localhost"
        || name.ends_with(".localhost")
        || name.parse::<Ipv4Addr>().is_ok_and(|address| address.is_loopback())
}

fn is_port(text: Option<&str>) -> bool {
    text.is_some_and(|text| text.bytes().all(|byte| byte.is_ascii_digit()))
}

/// Whether an origin is the server's own, by the name under which the request came.
fn is_own_page(origin: &str, headers: &HeaderMap) -> bool {
    let host = headers.get(header::HOST).map(text).unwrap_or_default();
    // By https where a program on this machine adds TLS.
    let origin_host = origin.strip_prefix("http://").or_else(|| origin.strip_prefix("https://"));
    !host.is_empty() && origin_host.is_some_and(|name| name.eq_ignore_ascii_case(host))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_that_nobody_can_point_elsewhere_are_this_machine() {
        for own in [
            "localhost",
            "LocalHost:8080",
            "localhost.",
            "a.localhost:1",
            "127.0.0.1",
            "127.9.8.7:80",
            "[::1]",
            "[::1]:8080",
            "localhost:",
        ] {
            assert!(is_this_machine(own), "{own}");
        }
        for foreign in [
            "",
            "?",
            "example.com",
            "localhost.example.com",
            "127.0.0.1.example.com",
            "0.0.0.0:8080",
            "10.0.0.1",
            "[::]",
            "[::1",
            "[::1]x",
            "[fe80::1]:80",
            "notlocalhost",
            "127.0.0.1:80@evil.com",
            "localhost:80:80",
            "127.1",
            "[::ffff:10.0.0.1]",
        ] {
            assert!(!is_this_machine(foreign), "{foreign}");
        }
    }
}
