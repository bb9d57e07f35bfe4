/* version.h - the version of every program; it goes into reports, so a change of results changes it. */
#ifndef QUARRY_COMMON_VERSION_H
#define QUARRY_COMMON_VERSION_H

#define QUARRY_VERSION "0.1.0"

#endif
